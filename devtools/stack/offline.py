"""`make offline`: the stack of serverless.yml on this machine, until Ctrl-C.

A moto server plays S3, SQS, SNS and EventBridge, with the buckets and queues of the template itself. Serverless
offline runs the functions. Between them, a poller for each queue does what Lambda's event source mapping does.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import boto3

from devtools.stack.poller import Poller, Queue, invoke_over_http
from devtools.stack.shim import ENVIRONMENT
from devtools.stack.stack import REACHED, environment, moto_server

_ROOT = Path(__file__).parents[2]
_PROGRAM = _ROOT / "node_modules" / ".bin" / "serverless"
_PLAN = "DELTAGUARD_LOCAL_PLAN"
_STACK = "deltaguard-local"
_BATCHES = "batches"  # in place of the queue that a producer would listen to
_SETTLE_SECONDS, _HIDDEN_SECONDS = 5, 10
_START_SECONDS, _END_SECONDS = 120.0, 20.0
_MADE = ("AWS::S3::Bucket", "AWS::SQS::Queue", "AWS::SNS::Topic")
"""What moto makes of the template. Roles, policies, alarms, dashboard have no effect here, and rules lead nowhere."""
_SAMPLES = """
import sys
from pathlib import Path
from devtools.damage.catalogue import apply_damage
from devtools.damage.deltas import DeltaRecipe, build_delta
for name in ("healthy", "broken"):
    build_delta(Path(sys.argv[1]) / name, DeltaRecipe(embeddings=40, dimension=64))
apply_damage("queue-row-deleted", Path(sys.argv[1]) / "broken")
"""


class StackFailed(Exception):
    """The stack cannot start, or has ended by itself; the message says why."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the stack until it is interrupted. Returns the exit status: 0 after Ctrl-C, 1 when it failed."""
    options = _parser().parse_args(arguments)
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # Ctrl-C, a kill, a terminal that was closed
        signal.signal(number, lambda *_: stop.set())
    try:
        with offline(options.port, options.hidden_seconds, options.settle_seconds) as running:
            _say(running.welcome())
            while not stop.wait(0.2):
                running.require_alive()
    except StackFailed as error:
        sys.stderr.write(f"Error: {error}\n")
        return 1
    _say("\nstopped, nothing is left")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="make offline", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--port", type=int, default=4566, help="of S3 and SQS; 0 takes a free one (default: 4566)")
    parser.add_argument(
        "--hidden-seconds",
        type=int,
        default=_HIDDEN_SECONDS,
        help=f"visibility timeout of the queues (default: {_HIDDEN_SECONDS}; in production minutes)",
    )
    parser.add_argument(
        "--settle-seconds",
        type=int,
        default=_SETTLE_SECONDS,
        help=f"how long a delta without a manifest is waited for (default: {_SETTLE_SECONDS})",
    )
    return parser


class Offline:
    """The running stack.

    Args:
        endpoint: URL of S3, SQS and all else.
        outputs: Outputs of the template, by name.
        samples: Folder with a healthy and a broken delta to try it with.
        process: Serverless offline.
    """

    def __init__(
        self, endpoint: str, outputs: Mapping[str, str], samples: Path, process: subprocess.Popen[str]
    ) -> None:
        self.endpoint, self.outputs = endpoint, outputs
        self._samples, self._process = samples, process

    def require_alive(self) -> None:
        """Makes sure that it still runs.

        Raises:
            StackFailed: Serverless offline has ended.
        """
        if self._process.poll() is not None:
            raise StackFailed(f"serverless offline ended by itself, with exit code {self._process.returncode}")

    def welcome(self) -> str:
        """What to do with it."""
        bucket = self.outputs["DeltasBucketName"]
        reached = " ".join(f"{name}={value}" for name, value in REACHED.items() if name.startswith("AWS_"))
        return f"""
Ready. S3 and SQS are at {self.endpoint}. In another terminal:

  export AWS_ENDPOINT_URL={self.endpoint} {reached}
  .venv/bin/deltaguard upload {self._samples}/healthy s3://{bucket}/words/delta/one
  aws s3 cp --recursive {self._samples}/broken s3://{bucket}/words/delta/two/
  .venv/bin/python -m devtools.stack.raw_copy {self._samples}/broken s3://{bucket}/words/delta/two/   # without the AWS
  CLI

The first is validated at once; the other, as it has no manifest, when nothing new has arrived for some seconds. It
ends in s3://{self.outputs["QuarantineBucketName"]}. Ctrl-C stops everything.
"""


@contextmanager
def offline(port: int, hidden_seconds: int, settle_seconds: int) -> Iterator[Offline]:
    """The stack, ready, for the length of the block. Nothing is left afterwards: no process, no file.

    Args:
        port: Where S3 and SQS listen; 0 takes a free port.
        hidden_seconds: Visibility timeout of the queues in place of the template's.
        settle_seconds: How long a delta without a manifest is waited for.

    Raises:
        StackFailed: It cannot start.
    """
    if not _PROGRAM.exists():
        raise StackFailed("the packages of package-lock.json are not installed: run `make offline`, or `npm ci`")
    with ExitStack() as undo:
        folder = Path(undo.enter_context(tempfile.TemporaryDirectory(prefix="offline-", ignore_cleanup_errors=True)))
        endpoint = undo.enter_context(moto_server(_require_free(port)))
        variables = {
            **REACHED,
            "AWS_ENDPOINT_URL": endpoint,
            "SLS_TELEMETRY_DISABLED": "1",
            "VIRTUAL_ENV": sys.prefix,
            "TMPDIR": str(folder),
            _PLAN: str(folder / "plan.json"),
            ENVIRONMENT: str(folder / "environment.json"),
        }
        undo.enter_context(environment(variables))
        lambda_port = _free_port()
        process = undo.enter_context(_serverless(lambda_port, settle_seconds))
        samples = undo.enter_context(_samples(folder / "samples"))
        plan = _awaited_plan(folder / "plan.json", process)
        outputs = _make(plan, hidden_seconds)
        _write_environment(plan, outputs, folder / "environment.json")
        _await_port(lambda_port, process)
        pollers = _pollers(plan, f"http://127.0.0.1:{lambda_port}")
        for poller in pollers:
            poller.start()
            undo.callback(poller.join)
        samples.wait()
        try:
            yield Offline(endpoint, outputs, folder / "samples", process)
        finally:
            for poller in pollers:
                poller.stop()


@contextmanager
def _serverless(port: int, settle_seconds: int) -> Iterator[subprocess.Popen[str]]:
    """Serverless offline in a session of its own: Ctrl-C reaches only this process, which ends it and waits for it."""
    command = [
        *(str(_PROGRAM), "offline", "start", "--stage", "local", "--host", "127.0.0.1", "--lambdaPort", str(port)),
        *(
            "--param",
            f"settleSeconds={settle_seconds}",
            "--param",
            f"arrivalSeconds={settle_seconds}",
            "--param",
            f"resubmitQueue={_BATCHES}",
        ),
    ]
    process = subprocess.Popen(  # noqa: S603 - our own
        command,
        cwd=_ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    reader = threading.Thread(target=_show, args=(process.stdout,), name="output of serverless offline", daemon=True)
    reader.start()
    try:
        yield process
    finally:
        _end(process)
        reader.join(_END_SECONDS)


def _end(process: subprocess.Popen[str]) -> None:
    """Has it end in an orderly way, handlers that still work included, and after a while in any way."""
    deadline = time.monotonic() + _END_SECONDS
    process.send_signal(signal.SIGINT)
    with suppress(subprocess.TimeoutExpired):
        process.wait(_END_SECONDS)
    with suppress(ProcessLookupError):
        while time.monotonic() < deadline:
            os.killpg(process.pid, 0)  # as long as one of its children lives
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@contextmanager
def _samples(folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Builds deltas to try the stack with, in a process of its own, which Chroma keeps to itself."""
    process = subprocess.Popen([sys.executable, "-c", _SAMPLES, str(folder)], cwd=_ROOT, start_new_session=True)  # noqa: S603
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def _awaited_plan(path: Path, process: subprocess.Popen[str]) -> dict[str, Any]:
    deadline = time.monotonic() + _START_SECONDS
    while not path.exists():
        if process.poll() is not None or time.monotonic() > deadline:
            raise StackFailed("serverless offline does not start; what it says is above")
        time.sleep(0.05)
    plan: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return plan


def _make(plan: Mapping[str, Any], hidden_seconds: int) -> dict[str, str]:
    """Makes the buckets, queues, topic and rules of the template. Returns its outputs."""
    template = plan["template"]
    resources = {
        name: {key: value for key, value in resource.items() if key != "DependsOn"}
        for name, resource in template["Resources"].items()
        if resource["Type"] in _MADE
    }
    for resource in resources.values():
        if resource["Type"] == "AWS::SQS::Queue":
            resource["Properties"]["VisibilityTimeout"] = hidden_seconds
    # The functions' environment refers to resources; as outputs, its values are resolved by the same rules.
    values = {
        f"{function}X{name.replace('_', 'X')}": {"Value": value}
        for function, definition in plan["functions"].items()
        for name, value in definition["environment"].items()
        if not isinstance(value, (str, int, float))
    }
    whole = {**template, "Resources": resources, "Outputs": {**template["Outputs"], **values}}
    client = boto3.client("cloudformation")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        client.create_stack(StackName=_STACK, TemplateBody=json.dumps(whole))
    outputs = client.describe_stacks(StackName=_STACK)["Stacks"][0].get("Outputs", [])
    boto3.client("sqs").create_queue(QueueName=_BATCHES)
    _notify(resources, _made())
    return {output["OutputKey"]: output["OutputValue"] for output in outputs}


def _made() -> dict[str, str]:
    """Physical names by logical ones."""
    summaries = boto3.client("cloudformation").list_stack_resources(StackName=_STACK)["StackResourceSummaries"]
    return {found["LogicalResourceId"]: found["PhysicalResourceId"] for found in summaries}


def _notify(resources: Mapping[str, Any], made: Mapping[str, str]) -> None:
    """The notifications of the buckets, which moto makes only by S3's own API."""
    for name, resource in resources.items():
        rules = resource["Properties"].get("NotificationConfiguration", {}).get("QueueConfigurations", [])
        if not rules or name not in made:
            continue
        configurations: list[Any] = [
            {
                "QueueArn": _arn(made[rule["Queue"]["Fn::GetAtt"][0]]),
                "Events": [rule["Event"]],
                "Filter": {
                    "Key": {
                        "FilterRules": [
                            filter_ for filter_ in rule["Filter"]["S3Key"]["Rules"] if filter_.get("Name") == "suffix"
                        ]
                    }
                },
            }
            for rule in rules
        ]
        boto3.client("s3").put_bucket_notification_configuration(
            Bucket=made[name], NotificationConfiguration={"QueueConfigurations": configurations}
        )


def _write_environment(plan: Mapping[str, Any], outputs: Mapping[str, str], path: Path) -> None:
    functions = {}
    for function, definition in plan["functions"].items():
        names = definition["environment"].items()
        values = {name: outputs.get(f"{function}X{name.replace('_', 'X')}", value) for name, value in names}
        functions[function] = {
            "handler": definition["handler"],
            "name": definition["name"],
            "timeout": definition["timeout"],
            "environment": {name: str(value) for name, value in values.items()},
        }
    path.write_text(json.dumps(functions), encoding="utf-8")


def _pollers(plan: Mapping[str, Any], endpoint: str) -> list[Poller]:
    made = _made()
    sqs = boto3.client("sqs")
    return [
        Poller(
            sqs,
            Queue(made[queue["resource"]], _arn(made[queue["resource"]]), queue["batch"]),
            invoke_over_http(endpoint, function["name"], function["timeout"]),
            lambda text: _say(f"failed       {text}"),
        )
        for function in plan["functions"].values()
        for queue in function["queues"]
    ]


def _arn(queue_url: str) -> str:
    answer = boto3.client("sqs").get_queue_attributes(QueueUrl=queue_url, AttributeNames=["QueueArn"])
    return answer["Attributes"]["QueueArn"]


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
    return port


def _require_free(port: int) -> int:
    """The port, provided that nobody listens there, which moto itself would wait for without end."""
    try:
        socket.create_server(("127.0.0.1", port)).close()
    except (OSError, OverflowError) as error:
        raise StackFailed(f"port {port} cannot be used: {error}; --port takes another one, 0 any free one") from error
    return port


def _await_port(port: int, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.05)
    raise StackFailed("serverless offline does not answer; what it says is above")


def _show(output: IO[str]) -> None:
    """What serverless offline and the functions say: log lines in short, metrics not at all, the rest as it is."""
    for line in output:
        text = line.rstrip()
        try:
            entry = json.loads(text)
        except ValueError:
            if text and "Duration:" not in text:
                _say(text)
            continue
        if isinstance(entry, dict) and "message" in entry:
            _say(_shortened(entry))


def _shortened(entry: Mapping[str, Any]) -> str:
    """One log line for people."""
    findings = ", ".join(dict.fromkeys(finding["code"] for finding in entry.get("findings", [])))
    told = (entry.get("delta"), findings, entry.get("reason"), entry.get("quarantine"))
    status = entry.get("status") or str(entry.get("level", "")).lower()
    return f"{status:<12} {entry['message']}  " + "  ".join(str(part) for part in told if part)


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
