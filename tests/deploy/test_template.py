"""The template that is deployed: events, time limits, encryption, retention, and who may do what."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from scanner.fleet.steps import FleetRequest
from shared.aws.events import ChunkRejected, DeltaCorrupt, DeltaQuarantined, DeltaUndetermined, ResubmissionExhausted
from shared.model.delta import DATABASE, MANIFEST
from shared.model.findings import CATALOGUE, Weight
from shared.model.settings import VARIABLES
from shared.model.verdict import Depth, Finding, Verdict
from tests.deploy.conftest import ROOT

pytestmark = pytest.mark.slow

FUNCTIONS = {"Validator", "Scanner", "Compaction", "Resubmission"}
Resources = dict[str, Any]


def of_type(resources: Resources, type_: str) -> Resources:
    return {name: resource["Properties"] for name, resource in resources.items() if resource["Type"] == type_}


def function(resources: Resources, name: str) -> dict[str, Any]:
    found: dict[str, Any] = resources[f"{name}LambdaFunction"]["Properties"]
    return found


def own_buckets(resources: Resources) -> Resources:
    return {name: resources[name]["Properties"] for name in ("DeltasBucket", "QuarantineBucket")}


def statements(role: dict[str, Any]) -> list[dict[str, Any]]:
    """The statements of a role, those under a condition as if it held."""
    found = [s for policy in role["Policies"] for s in policy["PolicyDocument"]["Statement"]]
    return [statement["Fn::If"][1] if "Fn::If" in statement else statement for statement in found]


def test_cloudformation_would_accept_it(template_file: Path) -> None:
    command = [
        str(Path(sys.executable).with_name("cfn-lint")),
        "--non-zero-exit-code",
        "informational",
        str(template_file),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert (done.returncode, done.stdout) == (0, "")


def test_every_function_is_a_command_of_the_one_image_and_its_handler_exists(resources: Resources) -> None:
    functions = of_type(resources, "AWS::Lambda::Function")
    assert set(functions) == {f"{name}LambdaFunction" for name in FUNCTIONS}
    for properties in functions.values():
        assert "@sha256:" in properties["Code"]["ImageUri"]
        module, _, attribute = properties["ImageConfig"]["Command"][0].rpartition(".")
        assert callable(getattr(import_module(module), attribute))


def test_every_setting_that_a_function_is_given_exists(resources: Resources) -> None:
    known = {*VARIABLES.values(), "CHROMADB_BUCKET"}
    for properties in of_type(resources, "AWS::Lambda::Function").values():
        assert set(properties["Environment"]["Variables"]) <= known


@pytest.mark.parametrize("suffix", [MANIFEST, DATABASE])
def test_uploads_of_manifests_and_databases_reach_the_queue(resources: Resources, suffix: str) -> None:
    configurations = resources["DeltasBucket"]["Properties"]["NotificationConfiguration"]["QueueConfigurations"]
    (found,) = (c for c in configurations if {"Name": "suffix", "Value": suffix} in c["Filter"]["S3Key"]["Rules"])
    assert (found["Event"], found["Queue"]) == ("s3:ObjectCreated:*", {"Fn::GetAtt": ["DeltasQueue", "Arn"]})
    below = {"Fn::If": ["WatchesAll", {"Ref": "AWS::NoValue"}, {"Name": "prefix", "Value": {"Ref": "WatchedPrefix"}}]}
    assert below in found["Filter"]["S3Key"]["Rules"]
    rule = resources["DeltasRule"]["Properties"]
    wildcards = [entry["wildcard"] for entry in rule["EventPattern"]["detail"]["object"]["key"]]
    assert {"Fn::Sub": f"${{WatchedPrefix}}*{suffix}"} in wildcards
    assert rule["Targets"][0]["Arn"] == {"Fn::GetAtt": ["DeltasQueue", "Arn"]}


def test_a_given_bucket_replaces_the_new_one(template: dict[str, Any], resources: Resources) -> None:
    assert (resources["DeltasBucket"]["Condition"], resources["DeltasRule"]["Condition"]) == (
        "OwnDeltas",
        "SharedDeltas",
    )
    assert resources["QuarantineBucket"]["Condition"] == "OwnQuarantine"
    assert template["Conditions"]["OwnDeltas"] == {"Fn::Equals": [{"Ref": "ExistingDeltasBucket"}, ""]}
    assert template["Conditions"]["SharedDeltas"] == {"Fn::Not": [{"Condition": "OwnDeltas"}]}


def test_nothing_is_announced_of_what_goes_into_quarantine(resources: Resources) -> None:
    assert "NotificationConfiguration" not in resources["QuarantineBucket"]["Properties"]


@pytest.mark.parametrize(("name", "queue"), [("Validator", "DeltasQueue"), ("Resubmission", "ResubmitQueue")])
def test_a_queue_gives_its_function_time_and_takes_partial_answers(resources: Resources, name: str, queue: str) -> None:
    mapping = resources[f"{name}EventSourceMappingSQS{queue}"]["Properties"]
    assert mapping["FunctionResponseTypes"] == ["ReportBatchItemFailures"]
    assert mapping["EventSourceArn"] == {"Fn::GetAtt": [queue, "Arn"]}
    assert resources[queue]["Properties"]["VisibilityTimeout"] >= 6 * function(resources, name)["Timeout"]


def test_every_queue_that_is_worked_on_has_a_dead_letter_queue(resources: Resources) -> None:
    queues = of_type(resources, "AWS::SQS::Queue")
    worked_on = {
        mapping["EventSourceArn"]["Fn::GetAtt"][0]
        for mapping in of_type(resources, "AWS::Lambda::EventSourceMapping").values()
    }
    assert worked_on == {"DeltasQueue", "ResubmitQueue"}
    for name in worked_on:
        redrive = queues[name]["RedrivePolicy"]
        assert (
            redrive["maxReceiveCount"] >= 5
        )  # https://docs.aws.amazon.com/lambda/latest/dg/services-sqs-configure.html
        dead = queues[redrive["deadLetterTargetArn"]["Fn::GetAtt"][0]]
        assert dead["MessageRetentionPeriod"] >= queues[name]["MessageRetentionPeriod"]


def test_validators_at_once_are_bounded_and_never_more_than_are_reserved(resources: Resources) -> None:
    mapping = resources["ValidatorEventSourceMappingSQSDeltasQueue"]["Properties"]
    reserved = function(resources, "Validator")["ReservedConcurrentExecutions"]
    assert mapping["ScalingConfig"]["MaximumConcurrency"] == reserved


def test_data_is_encrypted_private_and_survives_the_stack(resources: Resources) -> None:
    for name, bucket in own_buckets(resources).items():
        rule = bucket["BucketEncryption"]["ServerSideEncryptionConfiguration"][0]
        assert rule["ServerSideEncryptionByDefault"]["SSEAlgorithm"] == "AES256"
        assert set(bucket["PublicAccessBlockConfiguration"].values()) == {True}
        assert resources[name]["DeletionPolicy"] == resources[name]["UpdateReplacePolicy"] == "Retain"
    assert all(queue["SqsManagedSseEnabled"] for queue in of_type(resources, "AWS::SQS::Queue").values())


def test_only_encrypted_connections_are_accepted(resources: Resources) -> None:
    policies = of_type(resources, "AWS::S3::BucketPolicy") | of_type(resources, "AWS::SQS::QueuePolicy")
    for name in ("DeltasBucketPolicy", "QuarantineBucketPolicy", "DeltasQueuePolicy", "ResubmitQueuePolicy"):
        denied = [s for s in policies[name]["PolicyDocument"]["Statement"] if s["Effect"] == "Deny"]
        assert [s["Condition"] for s in denied] == [{"Bool": {"aws:SecureTransport": "false"}}]


def test_quarantine_forgets_after_a_time_that_is_chosen(resources: Resources) -> None:
    rules = resources["QuarantineBucket"]["Properties"]["LifecycleConfiguration"]["Rules"]
    assert [rule["ExpirationInDays"] for rule in rules if "ExpirationInDays" in rule] == [{"Ref": "QuarantineDays"}]
    assert all(
        "AbortIncompleteMultipartUpload" in b["LifecycleConfiguration"]["Rules"][0]
        for b in own_buckets(resources).values()
    )


def test_logs_end_and_traces_are_taken(resources: Resources) -> None:
    groups = of_type(resources, "AWS::Logs::LogGroup")
    assert len(groups) == len(FUNCTIONS)
    assert all(group["RetentionInDays"] == 90 for group in groups.values())
    functions = of_type(resources, "AWS::Lambda::Function").values()
    assert all(properties["TracingConfig"] == {"Mode": "Active"} for properties in functions)


def test_the_state_machine_that_scans_is_given_all_that_its_definition_leaves_open(resources: Resources) -> None:
    machine = resources["ScanMachine"]["Properties"]
    text = json.dumps(machine["Definition"])
    assert set(re.findall(r"\$\{(\w+)\}", text)) == machine["DefinitionSubstitutions"].keys()
    assert machine["Definition"] == json.loads((ROOT / "deploy/scan.asl.json").read_text())
    assert machine["DefinitionSubstitutions"]["Scanner"] == {"Fn::GetAtt": ["ScannerLambdaFunction", "Arn"]}
    assert machine["RoleArn"] == {"Fn::GetAtt": ["ScanMachineRole", "Arn"]}
    name = machine["StateMachineName"]
    role = json.dumps(resources["ScanMachineRole"])
    assert f"stateMachine:{name}" in role
    assert f"execution:{name}:*" in role


def test_a_scan_by_schedule_asks_for_what_a_scan_can_be_asked_for(
    template: dict[str, Any], resources: Resources
) -> None:
    assert template["Conditions"]["ScansBySchedule"] == {"Fn::Not": [{"Fn::Equals": [{"Ref": "ScanSchedule"}, ""]}]}
    assert resources["ScanRule"]["Condition"] == resources["ScanScheduleRole"]["Condition"] == "ScansBySchedule"
    (target,) = resources["ScanRule"]["Properties"]["Targets"]
    assert target["Arn"] == {"Ref": "ScanMachine"}
    request, _ = target["Input"]["Fn::Sub"]
    for placeholder, value in {"Bucket": "deltas", "WatchedPrefix": "words/", "ScanDepth": "header"}.items():
        request = request.replace(f"${{{placeholder}}}", value)
    asked = FleetRequest.model_validate_json(request)
    assert (asked.targets, asked.depth) == (("s3://deltas/words/",), Depth.HEADER)


def test_a_person_is_told_of_what_matters(resources: Resources) -> None:
    rule = resources["NoticesRule"]["Properties"]
    told = {notice.detail_type for notice in (DeltaQuarantined, DeltaCorrupt, ChunkRejected, ResubmissionExhausted)}
    assert set(rule["EventPattern"]["detail-type"]) == told
    assert rule["Targets"][0]["Arn"] == {"Ref": "Notices"}


def test_of_undetermined_deltas_a_person_is_told_of_those_that_stay_so(resources: Resources) -> None:
    """An environment's faults are counted by an alarm; of a doubt, the event names the delta and both sides."""
    rule = resources["DoubtsRule"]["Properties"]
    pattern = rule["EventPattern"]
    assert pattern["detail-type"] == [DeltaUndetermined.detail_type]
    doubts = {code for code, kind in CATALOGUE.items() if kind.weight is Weight.DOUBT and code.startswith("verdict.")}
    codes = pattern["detail"]["findings"]["code"]
    assert set(codes) == doubts - {"verdict.unconfirmed"}, "which says that Chroma could not be asked"
    verdict = Verdict("s3://deltas/d/", Depth.OPEN, tuple(Finding(code, "", "seen") for code in codes))
    told = DeltaUndetermined.of(verdict, None).model_dump(mode="json")
    assert {finding["code"] for finding in told["findings"]} == set(codes), "where the pattern looks for them"
    assert rule["Targets"][0]["Arn"] == {"Ref": "Notices"}


def test_every_function_has_a_role_of_its_own(resources: Resources) -> None:
    roles = [function(resources, name)["Role"] for name in FUNCTIONS]
    assert roles == [{"Fn::Sub": f"${{{name}Role.Arn}}"} for name in FUNCTIONS]
    others = {"ScanMachineRole", "ScanScheduleRole"}
    assert set(of_type(resources, "AWS::IAM::Role")) == {f"{name}Role" for name in FUNCTIONS} | others


def test_no_role_has_a_wildcard_for_an_action_or_for_resources_that_can_be_named(resources: Resources) -> None:
    for role in of_type(resources, "AWS::IAM::Role").values():
        assert "ManagedPolicyArns" not in role
        for statement in statements(role):
            assert not [action for action in statement["Action"] if "*" in action]
            if "*" in statement["Resource"]:
                assert {action.partition(":")[0] for action in statement["Action"]} == {"xray"}


def test_only_what_has_consequences_may_delete(resources: Resources) -> None:
    roles = of_type(resources, "AWS::IAM::Role")
    conditional = [
        s["Fn::If"][0] for s in roles["ScannerRole"]["Policies"][0]["PolicyDocument"]["Statement"] if "Fn::If" in s
    ]
    assert set(conditional) == {"ScannerQuarantines"}
    deleting = {name for name, role in roles.items() if any("s3:DeleteObject" in s["Action"] for s in statements(role))}
    assert deleting == {"ValidatorRole", "CompactionRole", "ScannerRole"}
    for role in roles.values():
        kept = [str(s["Resource"]) for s in statements(role) if "s3:DeleteObject" in s["Action"]]
        held = [resource for resource in kept if "Quarantine" in resource]
        assert all("/quarantine/.deltaguard/conditional-delete" in resource for resource in held)


def test_parameters_have_defaults_so_that_a_first_deployment_needs_only_the_image(template: dict[str, Any]) -> None:
    assert [name for name, parameter in template["Parameters"].items() if "Default" not in parameter] == []


def test_the_image_is_pinned_by_its_digest() -> None:
    root = Path(__file__).resolve().parents[2]
    bases = re.findall(r"^FROM (\S+)", (root / "Dockerfile").read_text(), re.MULTILINE)
    stages = set(re.findall(r"^FROM \S+ AS (\S+)", (root / "Dockerfile").read_text(), re.MULTILINE))
    assert bases
    assert all(base in stages or re.search(r"@sha256:[0-9a-f]{64}$", base) for base in bases)
