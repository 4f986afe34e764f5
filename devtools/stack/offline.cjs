// Prepares the stack for serverless offline, which can neither run images nor make queues and buckets: hands all
// functions to devtools/stack/shim.py, and writes down what devtools/stack/offline.py has to make and to deliver.
"use strict";

const { renameSync, writeFileSync } = require("node:fs");

const PLAN = "DELTAGUARD_LOCAL_PLAN";

module.exports = class Offline {
  constructor(serverless) {
    this.serverless = serverless;
    this.hooks = {
      "before:offline:start": () => this.prepare(),
      "before:offline:start:init": () => this.prepare(),
    };
  }

  prepare() {
    const path = process.env[PLAN];
    if (!path) throw new Error("serverless offline alone has no S3 and no queues: run `make offline`");
    const { service } = this.serverless;
    const functions = {};
    for (const key of service.getAllFunctions()) {
      const definition = service.getFunction(key);
      functions[key] = {
        name: definition.name,
        handler: definition.image.command[0],
        timeout: definition.timeout,
        environment: { ...service.provider.environment, ...definition.environment },
        queues: (definition.events ?? []).flatMap(({ sqs }) => (sqs ? [queueOf(sqs)] : [])),
      };
      delete definition.image;
      definition.handler = "devtools/stack/shim.handler";
      definition.environment = { DELTAGUARD_LOCAL_FUNCTION: key };
    }
    service.provider.environment = {};
    writeFileSync(`${path}.new`, JSON.stringify({ functions, template: service.resources }));
    renameSync(`${path}.new`, path);
  }
};

function queueOf({ arn, batchSize }) {
  return { resource: [arn["Fn::GetAtt"]].flat()[0], batch: batchSize };
}
