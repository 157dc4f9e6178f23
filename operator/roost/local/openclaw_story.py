"""The story of an OpenClaw agent, told like that of `story`: from `kubectl apply` to the answer in Telegram.

OpenClaw is the real one, below the real supervisor; the model and Telegram are stand-ins on this machine. What is
applied is the sample that people are shown; only its version, the secrets and the addresses of those two are changed.
"""

import contextlib
import json
import os
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import yaml

from roost.local.evidence import read_audit, read_ledger
from roost.local.fakes.background import Background
from roost.local.stack import manifests_dir
from roost.local.story import Broken, Machine, Stage
from roost.local.verify_figures import verify
from roost_agent.contract import PORTS

__all__ = ["AGENT", "Cast", "play", "tell"]

AGENT = "lovelace"
BOT = "123456:AAHdqTcvCH1vGWJxfSeofSAs0K5PALDsaw"
BEFORE, AFTER = "2026.9.5", "2026.9.6"
FIRST_KEY, SECOND_KEY = "first-key", "second-key"
START_SECONDS = 240.0
"""A start costs OpenClaw ten seconds of a core, and here the whole cluster wants the same cores."""
TURN_SECONDS = 90.0


@dataclass(slots=True)
class Cast:
    """A running stack, and those whom the agent talks with."""

    stage: Stage
    fakes: Background

    def say(self, text: str, containing: str = "") -> str:
        """A person says something in Telegram; answers what the agent then says, with these words in it."""
        bot = self.fakes.telegram.bot(BOT)
        since = len(bot.heard)
        self.fakes.run(bot.say(text))
        try:
            return self.fakes.run(bot.hears(since, containing=containing, seconds=TURN_SECONDS)).text
        except TimeoutError:
            raise Broken(f"nobody answered {text!r} in Telegram\n{self.stage.scene()}\n{self.log()}") from None

    def answers(self, text: str, *words: str) -> None:
        """A person says something, and these words are in the answer."""
        said = self.say(text, text)  # one that was killed may answer what came before once more
        self.stage.say(f"      Ann: {text}\n      {AGENT.capitalize()}: {said}")
        if missing := [word for word in words if word not in said]:
            raise Broken(f"{missing} should be in the answer:\n{said}")

    @property
    def machine(self) -> Machine:
        return self.stage.machine(AGENT)

    @property
    def starts(self) -> int:
        """How many times OpenClaw was started."""
        return sum('"runtime started"' in line for line in self.machine.log.read_text().splitlines())

    def log(self) -> str:
        with contextlib.suppress(Broken):
            return "machine, last lines:\n" + "\n".join(self.machine.log.read_text().splitlines()[-25:])
        return "there is no machine"


def tell(cast: Cast) -> dict[str, Any]:
    """Plays the whole story; answers its figures.

    Raises:
        Broken: a step did not come true.
    """
    began = time.monotonic()
    _begins(cast, BEFORE)
    answered = time.monotonic() - began
    rss = _rss(cast)
    for part in (_changes, _is_refused, _is_updated, _breaks, _ends):
        part(cast)
    stage = cast.stage
    report = verify(read_ledger(stage.stack.ledger_path), read_audit([stage.stack.audit_path]))
    return {
        "apply_to_ready_s": stage.steps["apply"],
        "apply_to_answer_s": round(answered, 2),
        "supervisor_rss_mb": rss,
        "orphans": len(report.orphans),
        "doubles": len(report.doubles),
        "order_violations": len(report.order_violations),
        "steps": stage.steps,
    }


def _begins(cast: Cast, version: str) -> None:
    stage = cast.stage
    with stage.step("apply", f"kubectl apply -f agent-openclaw.yaml: OpenClaw {version} is up, the Agent is Ready"):
        stage.kubectl("apply", "-f", "-", given=_sample(cast.fakes, version))
        stage.ready("agents", AGENT, START_SECONDS)
    with stage.step("stranger", "a stranger writes to the bot, and gets a code instead of an answer"):
        code = _code(cast.say("hello"))
        stage.say(f"      the code: {code}")
        stage.until("the Agent should tell of one who waits", lambda: _pending(stage) == 1)
    with stage.step("approved", "the code is approved: the next message goes to the model, its answer to Telegram"):
        _approve(cast, code)
        cast.answers("How are you?", FIRST_KEY, "You are Lovelace.")


def _changes(cast: Cast) -> None:
    stage = cast.stage
    with stage.step("soul", "spec.soul is edited: the next answer is another's, and nothing was restarted"):
        stage.patch("agents", AGENT, {"spec": {"soul": {"content": "You are Ada."}}})
        stage.ready("agents", AGENT)
        cast.answers("And who are you now?", "You are Ada.")
        _expect(cast.starts, 1, "starts of OpenClaw")
    with stage.step("key", "the core Secret gets another key: one restart, and the conversation goes on"):
        stage.patch("secret", "anthropic-v1", {"stringData": {"ANTHROPIC_API_KEY": SECOND_KEY}})
        stage.until("the agent should have been started again", lambda: cast.starts == 2, START_SECONDS)
        stage.ready("agents", AGENT, START_SECONDS)
        cast.answers("Do you remember me?", SECOND_KEY, "message 3")


def _is_refused(cast: Cast) -> None:
    stage = cast.stage
    with stage.step("refused", "runtime.config gets a key that OpenClaw does not know: told why, and nothing changes"):
        stage.patch("agents", AGENT, {"spec": {"runtime": {"config": {"gateway": {"nonsense": True}}}}})
        why = stage.until("ConfigApplied should say why", lambda: _not_applied(stage))
        stage.say(f"      ConfigApplied: {why}")
        cast.answers("Does that matter to you?", "message 4")
        stage.patch("agents", AGENT, {"spec": {"runtime": {"config": {"gateway": None}}}})
        stage.ready("agents", AGENT)
        _expect(cast.starts, 2, "starts of OpenClaw")


def _is_updated(cast: Cast) -> None:
    stage = cast.stage
    with stage.step("update", f"runtime.version is {AFTER}: it takes the conversation over"):
        stage.patch("agents", AGENT, {"spec": {"runtime": {"version": AFTER}}})
        ready = stage.ready("agents", AGENT, START_SECONDS)
        _expect(ready["status"]["agent"]["runtimeVersion"], AFTER, "the version that runs")
        cast.answers("Are you another one now?", "message 5")


def _breaks(cast: Cast) -> None:
    stage = cast.stage
    with stage.step("killed", "OpenClaw is killed: the supervisor has it back, and the machine never stopped"):
        before = cast.machine
        os.kill(_gateway(cast), signal.SIGKILL)
        stage.until("it should have been started again", lambda: cast.starts == 4, START_SECONDS)
        cast.answers("Are you still there?", SECOND_KEY, "You are Ada.")
        _expect((cast.machine.id, cast.machine.pid), (before.id, before.pid), "the machine was not touched")


def _ends(cast: Cast) -> None:
    stage = cast.stage
    with stage.step("delete", "everything is deleted, and nothing is left at Fly"):
        stage.kubectl("delete", "agents,secrets.roost.dev", "--all", "--timeout=120s")
        _expect(stage.machines(), [], "machines that are left")


def play(cast: Cast) -> None:
    """Tells the beginning, and then lets whoever sits at the terminal talk to the agent."""
    stage = cast.stage
    _begins(cast, AFTER)
    stage.say(stage.kubectl("get", "agents", "-o", "wide"))
    stage.say(_TRY.format(kubeconfig=stage.stack.kubeconfig, log=cast.machine.log, volume=cast.machine.volume))
    for line in filter(None, map(str.strip, sys.stdin)):
        try:
            stage.say(f"{AGENT.capitalize()}: {cast.say(line)}")
        except Broken:
            stage.say(f"Nobody has answered for {TURN_SECONDS:.0f} s; kubectl describe agent {AGENT} may know why.")
    signal.pause()


_TRY = """
You are Ann now, in Telegram: type a message. The model repeats it, and says with which key, as whom and as which model
it was asked. Meanwhile, elsewhere (export KUBECONFIG={kubeconfig}):

  kubectl patch agent lovelace --type=merge -p '{{"spec":{{"soul":{{"content":"You are Grace."}}}}}}'
  kubectl patch secret anthropic-v1 --type=merge -p '{{"stringData":{{"ANTHROPIC_API_KEY":"another-key"}}}}'
  kubectl patch agent lovelace --type=merge -p '{{"spec":{{"model":{{"default":"anthropic/claude-opus-4-6"}}}}}}'
  tail -f {log}
  ls {volume}

Ctrl-C ends it all.
"""


# --- Small pieces ------------------------------------------------------------------------------------------------


def _sample(fakes: Background, version: str) -> dict[str, Any]:
    """The sample, with the addresses of the stand-ins and with keys of nobody's."""
    items = list(yaml.safe_load_all((manifests_dir().parent / "samples" / "agent-openclaw.yaml").read_text()))
    found = {(item["kind"], item["apiVersion"], item["metadata"]["name"]): item for item in items}
    agent = found["Agent", "roost.dev/v1alpha1", AGENT]["spec"]
    agent["runtime"]["version"] = version
    agent["providers"][0]["baseUrl"] = fakes.model.url.removesuffix("/v1")
    telegram = {"apiRoot": fakes.telegram.url, "network": {"dangerouslyAllowPrivateNetwork": True}}
    agent["runtime"]["config"] |= {"channels": {"telegram": telegram}}
    found["Secret", "v1", "anthropic-v1"]["stringData"] = {"ANTHROPIC_API_KEY": FIRST_KEY}
    found["Secret", "v1", "telegram-lovelace"]["stringData"] = {"token": BOT}
    fakes.telegram.bot(BOT)
    return {"apiVersion": "v1", "kind": "List", "items": items}


def _code(said: str) -> str:
    """The pairing code in OpenClaw's answer to a stranger: eight capitals and digits on their own."""
    found = next((word for word in said.split() if len(word) == 8 and word.isupper()), None)
    if found is None:
        raise Broken(f"there should be a pairing code in what OpenClaw says to a stranger:\n{said}")
    return found


def _pending(stage: Stage) -> int:
    return int(stage.get("agents", AGENT).get("status", {}).get("agent", {}).get("pendingPairings") or 0)


def _not_applied(stage: Stage) -> str:
    """Why the configuration is not applied; empty while it is, or nobody knows."""
    conditions = stage.get("agents", AGENT).get("status", {}).get("conditions", ())
    told = next((c for c in conditions if c["type"] == "ConfigApplied" and c["reason"] == "ConfigFailed"), None)
    return str(told["message"]) if told else ""


def _approve(cast: Cast, code: str) -> None:
    """What `fly proxy 18791` and curl would do."""
    token = cast.stage.roost("gateway-token", AGENT).strip()
    url = f"http://{cast.machine.address}:{PORTS['pairing']}/v1/pairings/approve"
    who, proof = {"channel": "telegram", "code": code}, {"Authorization": f"Bearer {token}"}
    answer = httpx.post(url, json=who, headers=proof, timeout=30, trust_env=False)
    if answer.status_code != httpx.codes.OK:
        raise Broken(f"POST {url}: {answer.status_code} {answer.text}")


def _gateway(cast: Cast) -> int:
    """The pid of OpenClaw, as the supervisor's log tells it."""
    lines = cast.machine.log.read_text().splitlines()
    started = [json.loads(line) for line in lines if '"runtime started"' in line]
    return int(started[-1]["pid"])


def _rss(cast: Cast) -> float:
    """The supervisor's memory in MB."""
    status = Path(f"/proc/{cast.machine.pid}/status").read_text()
    kib = next(line.split()[1] for line in status.splitlines() if line.startswith("VmRSS:"))
    return round(int(kib) / 1024, 1)


def _expect(seen: object, wanted: object, what: str) -> None:
    if seen != wanted:
        raise Broken(f"{what}: expected {wanted!r}, seen {seen!r}")
