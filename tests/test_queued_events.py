"""Queues into the inbox: acknowledged after the commit, poison never blocks, a failing queue stops no other."""

import base64
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event, Thread
from typing import Any
from uuid import uuid4

import boto3
import dagster as dg
import pytest
from places import Place
from s3_server import KEY_ID, SECRET, Answer, fault_server, moto_server

from mm_assets.errors import ConfigError, ServiceError
from mm_assets.flows.asking import answer
from mm_assets.flows.b2_rules import check_b2_rules
from mm_assets.flows.pulling import Pulled, pull_queues
from mm_assets.flows.queues import Message, Sqs
from mm_assets.flows.workspace import Workspace
from mm_assets.settings import SourceSettings, SqsQueue
from sensors.queued_events import queued_events_sensor

MakePlace = Callable[..., Place]


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    """Run a server that has SQS."""
    with moto_server() as url:
        yield url


@pytest.fixture(autouse=True)
def _keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY_ID)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


@pytest.fixture
def sqs(endpoint: str) -> Any:
    """Give a client of SQS."""
    return boto3.client("sqs", region_name="us-east-1", endpoint_url=endpoint)


@pytest.fixture
def queue(sqs: Any, endpoint: str) -> dict[str, str]:
    """Make a queue; returns its settings."""
    url = sqs.create_queue(QueueName=uuid4().hex)["QueueUrl"]
    return {"queue_url": url, "region": "us-east-1", "endpoint_url": endpoint}


def record(key: str, bucket: str = "source") -> str:
    """Return a message of S3 about a watched folder, which goes by its alias."""
    stored = {"bucket": {"name": bucket}, "object": {"key": key}}
    return json.dumps({"Records": [{"eventSource": "aws:s3", "eventName": "ObjectCreated:Put", "s3": stored}]})


def n_left(sqs: Any, queue: dict[str, str]) -> int:
    """Count what the queue still holds, seen or hidden."""
    names = ["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible"]
    found = sqs.get_queue_attributes(QueueUrl=queue["queue_url"], AttributeNames=names)["Attributes"]
    return sum(int(found[name]) for name in names)


def keys(workspace: Workspace) -> list[str]:
    """Return what waits in the inbox."""
    return sorted(hint.key for hint in workspace.ledger.inbox.waiting(1_000))


# -- SQS ---------------------------------------------------------------------------------------------------------


def test_sqs_is_emptied_into_the_inbox(make_workspace: MakePlace, sqs: Any, queue: dict[str, str]) -> None:
    """All messages, ten at a time; keys are form-decoded; then the queue is empty."""
    for n in range(23):
        sqs.send_message(QueueUrl=queue["queue_url"], MessageBody=record(f"a+{n:02}.jpg"))
    workspace = make_workspace(events={"sqs": [queue]}).open()
    pulled = pull_queues(workspace)
    assert (pulled.n_messages, pulled.n_new, pulled.n_ignored, pulled.failures) == (23, 23, 0, {})
    assert keys(workspace) == [f"a {n:02}.jpg" for n in range(23)]
    assert n_left(sqs, queue) == 0


def test_sns_inside_sqs_is_unpacked(make_workspace: MakePlace, sqs: Any, queue: dict[str, str]) -> None:
    """A queue may be subscribed to a topic."""
    envelope = {"Type": "Notification", "TopicArn": "arn", "Message": record("a.jpg")}
    sqs.send_message(QueueUrl=queue["queue_url"], MessageBody=json.dumps(envelope))
    workspace = make_workspace(events={"sqs": [queue]}).open()
    assert pull_queues(workspace).n_new == 1


def test_messages_stay_until_the_commit(
    make_workspace: MakePlace, sqs: Any, queue: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The ledger fails: nothing is acknowledged, so the messages come again."""
    sqs.send_message(QueueUrl=queue["queue_url"], MessageBody=record("a.jpg"))
    workspace = make_workspace(events={"sqs": [queue]}).open()

    def fail(_: object) -> int:
        msg = "down"
        raise ServiceError(msg)

    monkeypatch.setattr(workspace.ledger.inbox, "add", fail)
    with pytest.raises(ServiceError):
        pull_queues(workspace)
    assert n_left(sqs, queue) == 1


def test_death_between_commit_and_acknowledgement_repeats_and_loses_nothing(
    make_workspace: MakePlace, sqs: Any, queue: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The message comes again and is known."""
    sqs.send_message(QueueUrl=queue["queue_url"], MessageBody=record("a.jpg"))
    workspace = make_workspace(events={"sqs": [queue]}).open()

    def die(_: Sqs, messages: Sequence[Message]) -> None:
        for message in messages:  # SQS shows it again at once instead of in two minutes
            sqs.change_message_visibility(
                QueueUrl=queue["queue_url"], ReceiptHandle=message.handle, VisibilityTimeout=0
            )
        raise KeyboardInterrupt

    with monkeypatch.context() as dying:
        dying.setattr(Sqs, "acknowledge", die)
        with pytest.raises(KeyboardInterrupt):
            pull_queues(workspace)
    assert keys(workspace) == ["a.jpg"]
    pulled = pull_queues(workspace)
    assert (pulled.n_messages, pulled.n_new) == (1, 0)
    assert keys(workspace) == ["a.jpg"]
    assert n_left(sqs, queue) == 0


def test_poison_is_counted_and_removed(make_workspace: MakePlace, sqs: Any, queue: dict[str, str]) -> None:
    """What is no event, or none of ours, does not block what is."""
    for body in ("no JSON", "[" * 10_000, "{}", record("a.jpg", bucket="other"), record("%FF"), record("good.jpg")):
        sqs.send_message(QueueUrl=queue["queue_url"], MessageBody=body)
    workspace = make_workspace(events={"sqs": [queue]}).open()
    pulled = pull_queues(workspace)
    assert (pulled.n_messages, pulled.n_new, pulled.n_ignored) == (6, 1, 5)
    assert n_left(sqs, queue) == 0
    totals = workspace.ledger.meters.totals()
    assert totals["events_ignored_total", (("provider", "sqs"), ("why", "poison"))] == 3


def test_large_message_is_no_poison(make_workspace: MakePlace, sqs: Any, queue: dict[str, str]) -> None:
    """The limit of a pushed delivery is not that of a queue, whose messages nobody sends again; a bad record is left out."""
    records = [json.loads(record(f"{n}.jpg"))["Records"][0] for n in range(51)] + [{"eventSource": 1}, None]
    sqs.send_message(QueueUrl=queue["queue_url"], MessageBody=json.dumps({"Records": records}))
    workspace = make_workspace(events={"sqs": [queue]}).open()
    pulled = pull_queues(workspace)
    assert (pulled.n_messages, pulled.n_new, pulled.n_ignored) == (1, 51, 2)
    totals = workspace.ledger.meters.totals()
    assert totals["events_ignored_total", (("provider", "sqs"), ("why", "malformed"))] == 2


def test_queue_that_hangs_is_left_at_the_deadline(make_workspace: MakePlace, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its answer is not waited for longer than the call has time."""
    settings = {"sqs": [{"queue_url": "https://sqs.example/1/q", "region": "us-east-1"}]}
    may_end = Event()
    monkeypatch.setattr(Sqs, "receive", lambda _: may_end.wait(20))
    started = time.monotonic()
    pulled = pull_queues(make_workspace(events=settings).open(), deadline_s=0.2)
    assert time.monotonic() - started < 5
    assert "did not answer" in pulled.failures["https://sqs.example/1/q"]
    may_end.set()


def test_failing_queue_stops_no_other(make_workspace: MakePlace, sqs: Any, queue: dict[str, str]) -> None:
    """Its failure is told with the setting to look at."""
    sqs.send_message(QueueUrl=queue["queue_url"], MessageBody=record("a.jpg"))
    missing = queue | {"queue_url": queue["queue_url"] + "-missing"}
    workspace = make_workspace(events={"sqs": [missing, queue]}).open()
    pulled = pull_queues(workspace)
    assert pulled.n_new == 1
    assert list(pulled.failures) == [missing["queue_url"]]
    assert "events.sqs" in pulled.failures[missing["queue_url"]]


def test_deadline_ends_a_pull(make_workspace: MakePlace, sqs: Any, queue: dict[str, str]) -> None:
    """What is left is for the next call."""
    sqs.send_message(QueueUrl=queue["queue_url"], MessageBody=record("a.jpg"))
    workspace = make_workspace(events={"sqs": [queue]}).open()
    assert pull_queues(workspace, deadline_s=0.0).n_messages == 0
    assert n_left(sqs, queue) == 1


def test_no_region_is_a_failure_that_names_the_setting() -> None:
    """Not a stack trace of boto's."""
    with pytest.raises(ConfigError, match=r"events\.sqs"):
        Sqs(SqsQueue(queue_url="https://sqs.example/1/q", profile="of-nobody")).receive()


# -- R2 ----------------------------------------------------------------------------------------------------------


class FakeCloudflare:
    """One queue as Cloudflare's API gives it: messages come again until they are acknowledged."""

    def __init__(self, *bodies: Any) -> None:
        self.messages = {f"lease{n}": body for n, body in enumerate(bodies)}
        self.requests: list[tuple[str, str, Any]] = []

    def answer(self, path: str, authorization: str, asked: Any) -> Any:
        """Answer one request."""
        self.requests.append((path, authorization, asked))
        if path.endswith("/pull"):
            listed = list(self.messages.items())[: asked["batch_size"]]
            messages = [{"lease_id": lease, "body": body, "id": "1", "attempts": 1} for lease, body in listed]
            return {"success": True, "result": {"messages": messages}}
        for ack in asked["acks"]:
            del self.messages[ack["lease_id"]]
        return {"success": True, "result": {"ackCount": len(asked["acks"])}}


@contextmanager
def answering(answer: Callable[[str, str, Any], Any]) -> Iterator[str]:
    """Serve JSON; yields the URL."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))) or b"null")
            body = json.dumps(answer(self.path, self.headers.get("Authorization", ""), asked)).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST  # noqa: N815  http.server's names

        def log_message(self, *_: object) -> None:
            """Be silent."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def r2_settings(url: str) -> dict[str, Any]:
    """Return settings with one queue of Cloudflare."""
    return {"r2": [{"account_id": "acc", "queue_id": "q", "api_token": "the-token", "api_url": f"{url}/client/v4"}]}


def r2_message(key: str) -> dict[str, Any]:
    """Return an event of R2."""
    return {"account": "acc", "action": "PutObject", "bucket": "source", "object": {"key": key, "eTag": "e"}}


def test_r2_is_pulled_and_acknowledged(make_workspace: MakePlace) -> None:
    """In every form of the body; poison is acknowledged, too."""
    encoded = base64.b64encode(json.dumps(r2_message("c.jpg")).encode()).decode()
    cloudflare = FakeCloudflare(r2_message("a.jpg"), json.dumps(r2_message("b.jpg")), encoded, "poison", None)
    with answering(cloudflare.answer) as url:
        workspace = make_workspace(events=r2_settings(url)).open()
        pulled = pull_queues(workspace)
    assert (pulled.n_messages, pulled.n_new, pulled.n_ignored, pulled.failures) == (5, 3, 2, {})
    assert keys(workspace) == ["a.jpg", "b.jpg", "c.jpg"]
    assert cloudflare.messages == {}
    path, authorization, asked = cloudflare.requests[0]
    assert path == "/client/v4/accounts/acc/queues/q/messages/pull"
    assert authorization == "Bearer the-token"
    assert asked["batch_size"] == 100


@pytest.mark.parametrize(
    "answer", [Answer(500), Answer(200, b"<html>"), Answer(200, b"{}"), Answer(200, b'{"result": null}'), Answer(401)]
)
def test_failing_r2_is_told_and_nothing_is_lost(make_workspace: MakePlace, answer: Answer) -> None:
    """Outages, proxies and wrong tokens end the pull of this queue with a message."""
    with fault_server(answer) as server:
        pulled = pull_queues(make_workspace(events=r2_settings(server.url)).open())
    assert list(pulled.failures) == ["q"]
    assert "the-token" not in pulled.failures["q"]


# -- Backblaze's rules -------------------------------------------------------------------------------------------


def b2_api(rules: list[dict[str, Any]], url: list[str], asked: list[tuple[str, str]]) -> Callable[[str, str, Any], Any]:
    """Return answers like those of B2's native API."""

    def answer(path: str, authorization: str, _: Any) -> Any:
        asked.append((path, authorization))
        if path.endswith("b2_authorize_account"):
            return {
                "accountId": "acc",
                "authorizationToken": "session",
                "apiInfo": {"storageApi": {"apiUrl": url[0]}},
            }
        if path.endswith("b2_list_buckets"):
            return {"buckets": [{"bucketId": "bid", "bucketName": "media"}]}
        return {"bucketId": "bid", "eventNotificationRules": rules}

    return answer


def b2_settings(url: str) -> dict[str, Any]:
    """Return settings of a source on B2 whose events are expected."""
    keys = {"access_key_id": "key-id", "secret_access_key": "key"}
    source = {"uri": "s3://media", "alias": "source", "endpoint_url": "https://s3.us-west-004.backblazeb2.com"}
    other = {"uri": "s3://media", "alias": "elsewhere", "endpoint_url": "https://backblazeb2.com.example", **keys}
    events = {"b2_secrets": ["a-secret-of-the-tests"], "b2_api_url": url}
    return {"sources": [source | keys | {"region": "us-west-004"}, other | {"region": "r"}], "events": events}


def test_suspended_rule_raises_an_alarm_and_clears_it(make_workspace: MakePlace) -> None:
    """The alarm names bucket, rule and reason, and goes when the rule is active again."""
    rules: list[dict[str, Any]] = [
        {"name": "rule-one", "isSuspended": True, "suspensionReason": "timeout"},
        {"name": "rule-two"},
    ]
    url, asked = [""], list[tuple[str, str]]()
    with answering(b2_api(rules, url, asked)) as url[0]:
        workspace = make_workspace(**b2_settings(url[0])).open()
        alarm = check_b2_rules(workspace)["source"]
        assert alarm is not None
        assert "media" in alarm
        assert "rule-one: timeout" in alarm
        assert "rule-two" not in alarm
        assert workspace.ledger.objects.scan("source").events_alarm == alarm
        rules[0]["isSuspended"] = False
        assert check_b2_rules(workspace) == {"source": None}
        assert workspace.ledger.objects.scan("source").events_alarm is None
    basic = "Basic " + base64.b64encode(b"key-id:key").decode()
    assert asked[:3] == [
        ("/b2api/v3/b2_authorize_account", basic),
        ("/b2api/v3/b2_list_buckets", "session"),
        ("/b2api/v3/b2_get_bucket_notification_rules?bucketId=bid", "session"),
    ]


@pytest.mark.parametrize(
    "answer", [Answer(500), Answer(401), Answer(200, b"[]"), Answer(200, b"{}"), Answer(200, b"<")]
)
def test_api_that_fails_leaves_the_alarm(make_workspace: MakePlace, answer: Answer) -> None:
    """Not knowing is no news."""
    with fault_server(answer) as server:
        workspace = make_workspace(**b2_settings(server.url)).open()
        workspace.ledger.objects.set_events_alarm("source", "suspended")
        assert check_b2_rules(workspace) == {}
    assert workspace.ledger.objects.scan("source").events_alarm == "suspended"


def test_api_that_hangs_is_left_at_the_deadline(make_workspace: MakePlace, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tick has a minute for everything; without time nothing is asked at all."""
    may_end, asked = Event(), list[int]()

    def hang(*_: object) -> None:
        asked.append(1)
        may_end.wait(20)

    monkeypatch.setattr("mm_assets.flows.b2_rules._read_rules", hang)
    workspace = make_workspace(**b2_settings("http://127.0.0.1:9")).open()
    started = time.monotonic()
    assert check_b2_rules(workspace, deadline_s=0.2) == {}
    assert time.monotonic() - started < 5
    assert check_b2_rules(workspace, deadline_s=0.0) == {}
    assert asked == [1]
    may_end.set()


def test_source_that_hangs_does_not_use_up_the_time_of_others(
    make_workspace: MakePlace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each source has its share of the time, so the others are asked, and what one leaves is theirs."""
    may_end, lasts_s = Event(), list[float]()

    def read(source: SourceSettings, _: str) -> list[Any]:
        if source.alias == "source":
            may_end.wait(20)
        return []

    def note(ask: Callable[[], Any], *, ends_at: float) -> Any:
        lasts_s.append(ends_at - time.monotonic())
        return answer(ask, ends_at=ends_at)

    monkeypatch.setattr("mm_assets.flows.b2_rules._read_rules", read)
    monkeypatch.setattr("mm_assets.flows.b2_rules.answer", note)
    settings = b2_settings("http://127.0.0.1:9")
    first, elsewhere = settings["sources"]
    settings["sources"] = [first, elsewhere, first | {"alias": "second"}, first | {"alias": "third"}]
    workspace = make_workspace(**settings).open()
    assert check_b2_rules(workspace, deadline_s=3.0) == {"second": None, "third": None}
    assert lasts_s == pytest.approx([1.0, 1.0, 2.0], abs=0.5)
    may_end.set()


def test_nothing_is_asked_where_no_event_is_expected(make_workspace: MakePlace) -> None:
    """Without a secret of B2 no rule is meant for us, and calls cost."""
    with fault_server(Answer(500)) as server:
        settings = b2_settings(server.url)
        settings["events"]["b2_secrets"] = []
        assert check_b2_rules(make_workspace(**settings).open()) == {}
        assert server.requests == []


# -- the sensor --------------------------------------------------------------------------------------------------


def test_sensor_fetches_and_asks_for_no_run(
    make_workspace: MakePlace, sqs: Any, queue: dict[str, str], instance: dg.DagsterInstance
) -> None:
    """It says what came, goes on where a queue fails, and looks at B2's rules once an hour."""
    sqs.send_message(QueueUrl=queue["queue_url"], MessageBody=record("a.jpg"))
    missing = queue | {"queue_url": queue["queue_url"] + "-missing"}
    place = make_workspace(events={"sqs": [missing, queue]})
    context = dg.build_sensor_context(instance=instance, resources={"workspace": place.resource()})
    tick = queued_events_sensor.evaluate_tick(context)
    assert tick.run_requests == []
    assert tick.skip_message == "1 messages, 1 new events, 0 ignored"
    assert keys(place.open()) == ["a.jpg"]
    again = dg.build_sensor_context(instance=instance, cursor=tick.cursor, resources={"workspace": place.resource()})
    assert queued_events_sensor.evaluate_tick(again).cursor == tick.cursor


def test_sensor_shares_its_time(
    make_workspace: MakePlace, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Queues and rules together have forty seconds, however long the queues took."""
    given: list[float] = []
    now = time.monotonic()
    monkeypatch.setattr("sensors.queued_events.time.monotonic", lambda: now + sum(given))

    def pull(_: Workspace, deadline_s: float) -> Pulled:
        given.append(deadline_s)
        return Pulled()

    def check(_: Workspace, deadline_s: float) -> dict[str, str | None]:
        given.append(deadline_s)
        return {}

    monkeypatch.setattr("sensors.queued_events.pull_queues", pull)
    monkeypatch.setattr("sensors.queued_events.check_b2_rules", check)
    context = dg.build_sensor_context(instance=instance, resources={"workspace": make_workspace().resource()})
    queued_events_sensor.evaluate_tick(context)
    assert given == pytest.approx([25.0, 15.0])
