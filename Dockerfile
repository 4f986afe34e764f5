# The image of every function; which one it is, the function's command says. Built and pushed as docs/deploy.md tells.
# Another base: `docker buildx imagetools inspect public.ecr.aws/lambda/python:3.13` names its digest.
FROM public.ecr.aws/lambda/python:3.13@sha256:5e7e09c5bf735a8e824511117bb0e9f335b778ac2e17a07161ee1542509b98f4 AS build
COPY deploy/requirements.lock /build/
# Compiled here, as Lambda's file system cannot be written to. pip's own files stay behind in this stage.
RUN python -m pip install --no-cache-dir --no-deps --require-hashes --only-binary :all: --no-warn-script-location \
      --target /build/packages --requirement /build/requirements.lock \
    && rm -rf /build/packages/bin \
    && find /build/packages -type d \( -name tests -o -name test \) -prune -exec rm -rf {} +
COPY shared /build/code/shared
COPY validator /build/code/validator
COPY scanner /build/code/scanner
COPY compaction /build/code/compaction
RUN python -m compileall -q /build/code

FROM public.ecr.aws/lambda/python:3.13@sha256:5e7e09c5bf735a8e824511117bb0e9f335b778ac2e17a07161ee1542509b98f4
ARG VERSION=unknown
LABEL org.opencontainers.image.title="deltaguard" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}"
COPY --from=build /build/packages ${LAMBDA_TASK_ROOT}
COPY --from=build /build/code ${LAMBDA_TASK_ROOT}
ENV ANONYMIZED_TELEMETRY=False
# Lambda runs it as a user without rights anyway; this is for everybody else.
USER 65534:65534
CMD ["validator.handler.handler"]
