"""One mutation for each safety rule: a small edit that switches the rule off, and the tests that must turn red.

`make mutations` applies them one at a time to a copy of the code. A mutation that survives is a rule that nobody
guards: write the test, not another mutation. `old` must stand in the file exactly once.
"""

# ruff: noqa: E501 - a text of the code stands here as it stands there

from dataclasses import dataclass

AGENTS = "tests/unit/agents/"
STORIES, LIFE = AGENTS + "test_agent_stories.py::test_", AGENTS + "test_agent_whole_life.py::test_"
SCENES, FIELDS = AGENTS + "test_agent_scenarios.py::test_", AGENTS + "test_agent_fields.py::test_"
SAFETY = AGENTS + "test_agent_safety.py::test_"
STATUS, CONFIG = AGENTS + "test_agent_status.py::test_", AGENTS + "test_agent_machine_config.py::test_"
EXPLORED = AGENTS + "test_agent_explore.py::test_no_refusal_that_fly_knows_breaks_a_rule"
ANY_MOMENT = AGENTS + "test_agent_explore.py::test_no_fault_at_any_moment_breaks_a_rule"
PAIRS = AGENTS + "test_agent_explore.py::test_no_two_faults_break_a_rule"
ENDPOINT = "tests/unit/endpoint/test_endpoint.py::test_"
VERIFIER = "tests/unit/endpoint/test_oidc_verifier.py::test_"
EXCHANGE = "tests/unit/endpoint/test_token_exchange.py::test_"
SECRETS, LOOKUP = (f"tests/unit/secrets/test_secret_{part}.py::test_" for part in ("life", "lookup"))
FLEET, ENGINE = "tests/unit/fleets/test_fleet_plan.py::test_", "tests/unit/engine/test_engine.py::test_"
FLY, FLY_ERRORS = "tests/unit/fly/test_fly_client.py::test_", "tests/unit/fly/test_fly_errors.py::test_"
RECORDS, LEADER = "tests/unit/kube/test_records.py::test_", "tests/unit/engine/test_leader.py::test_"

PLAN, DESTROY = "operator/roost/agents/plan.py", "operator/roost/agents/destroy.py"
FOLD, STORAGE = "operator/roost/agents/fold.py", "operator/roost/agents/storage.py"


@dataclass(frozen=True, slots=True)
class Mutation:
    """An edit of one file, why it is a disaster, and the tests that see it."""

    name: str
    why: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]


MUTATIONS = (
    # --- Nothing before the finalizer; no finalizer gone while something of ours may exist ---------------------
    Mutation(
        "finalizer after the first create",
        "deleted in between, the app is nobody's and paid for ever",
        PLAN,
        "(_finalizer, _place, _secrets, _nothing_wanted, _app, _look,",
        "(_place, _secrets, _nothing_wanted, _app, _finalizer, _look,",
        (EXPLORED + "[made]",),
    ),
    Mutation(
        "finalizer removed on a 403",
        "a token that is at fault for a moment lets go of an app that is ours",
        DESTROY,
        "if (unsure := _untold(view)) is not None:",
        "if (unsure := _untold(view)) is not None and False:",
        (STORIES + "after_a_crash_a_403_is_no_proof_that_the_app_is_somebody_elses",),
    ),
    Mutation(
        "an app that answers 403 taken as gone",
        "no right to look is no proof of absence",
        FOLD,
        "case GetApp(), errors.NotFound():",
        "case GetApp(), (errors.NotFound() | errors.Unauthorized()):",
        (EXPLORED + "[deleted]",),
    ),
    Mutation(
        "an app that answers 404 believed at once after a lost create",
        "the create that is still on its way makes an app that nobody knows of",
        DESTROY,
        "(looked is not None and looked >= quiet + view.absence_seconds)",
        "looked is not None",
        (LIFE + "a_lost_create_of_the_app_is_waited_for_before_the_agent_is_let_go",),
    ),
    Mutation(
        "other controllers' finalizers dropped with ours",
        "somebody else's clean-up never runs",
        "operator/roost/kube/objects.py",
        "wanted = [*theirs, name] if held else theirs",
        "wanted = [name] if held else []",
        (SAFETY + "finalizers_of_others_come_and_go_untouched",),
    ),
    # --- One machine, one volume -------------------------------------------------------------------------------
    Mutation(
        "create without a look after an unknown outcome",
        "a volume's name is not unique: the second one hides the data in the first",
        FOLD,
        "return replace(world, born=False, volume_looks=(), quiet_since=now, lost_volume=True)",
        "return world",
        (EXPLORED + "[made]",),
    ),
    Mutation(
        "a server error of a create taken as nothing done",
        "the same as above, one room lower",
        "operator/roost/fly/errors.py",
        "kind = Ambiguous if sent and not is_read(op) else Unavailable",
        "kind = Unavailable",
        (FLY_ERRORS + "a_failure_at_fly_leaves_only_changes_in_doubt",),
    ),
    Mutation(
        "empty list taken as absent",
        "lists lag and have been empty by mistake: one that shows nothing proves nothing",
        "operator/roost/agents/absence.py",
        "return len(looks) >= 2 and looks[-2] >= settled_at(view) and looks[-1] - looks[-2] >= LOOKS_APART_SECONDS",
        "return len(looks) >= 1",
        (EXPLORED + "[made in a shared app]", STORIES + "an_empty_list_by_mistake_makes_no_second_volume"),
    ),
    Mutation(
        "a machine that a list leaves out taken as gone",
        "one empty list, and the app is deleted with all that is in it",
        FOLD,
        "kept = [m if m.gone else replace(m, suspect=True) for m in world.machines or () if m.id not in sights]",
        'kept = [replace(m, state="destroyed") for m in world.machines or () if m.id not in sights]',
        (STORIES + "one_empty_list_does_not_unblock_the_deletion_of_an_app_with_others_in_it",),
    ),
    Mutation(
        "no patience with a create that may be late",
        "what arrives after its answer was given up makes a double",
        "operator/roost/agents/absence.py",
        "return 0.0 if quiet is None else quiet + view.absence_seconds",
        "return 0.0",
        (STORIES + "after_a_lost_answer_absence_is_believed_only_90_s_and_two_looks_later",),
    ),
    Mutation(
        "a 404 for something young believed",
        "the first minute knows no absence: it would be made again",
        FOLD,
        "return any(t is not None and now - t < YOUNG_SECONDS for t in since)",
        "return False",
        (
            STORIES + "a_young_machine_that_is_not_known_everywhere_is_not_made_again",
            STORIES + "a_young_app_that_is_not_known_everywhere_is_no_missing_app",
        ),
    ),
    Mutation(
        "a machine started before its volumes were seen",
        "the volume in the status may have been followed by another, with the data",
        PLAN,
        "return _informed(view, _machine(view) or _runtime(view))",
        "return _machine(view) or _runtime(view)",
        (LIFE + "after_a_restart_the_volumes_are_looked_at_before_a_machine_is_started",),
    ),
    Mutation(
        "a machine on the successor's volume destroyed for an old status",
        "a restored agent loses the machine it has just been given",
        PLAN,
        "    if view.world.volumes is None:\n        return Act(ListVolumes(), Phase.UPDATING,",
        "    if False:\n        return Act(ListVolumes(), Phase.UPDATING,",
        (LIFE + "a_status_that_names_the_volume_before_condemns_no_machine_on_its_successor",),
    ),
    Mutation(
        "a lost volume followed by an empty one",
        "the data's end, without a word: only the annotation that names the volume allows it",
        STORAGE,
        'if spec.on_loss == "Recreate" and view.declared.annotations.get("roost.dev/allow-data-loss") == gone.id:',
        'if spec.on_loss == "Recreate":',
        (
            LIFE + "on_loss_recreate_needs_the_annotation_that_names_the_lost_volume",
            LIFE + "the_annotation_never_costs_the_next_volume",
        ),
    ),
    Mutation(
        "a volume believed lost at the first 404",
        "it is given up while it was only out of sight",
        STORAGE,
        "if gone.missed_at is not None and gone.seen_at - gone.missed_at < absence.LOOKS_APART_SECONDS:",
        "if False:",
        (LIFE + "a_volume_is_lost_only_when_it_was_not_found_twice",),
    ),
    # --- Nothing is destroyed that is not ours -----------------------------------------------------------------
    Mutation(
        "no ownership check before a machine is destroyed",
        "in a shared app the neighbour's machine goes",
        DESTROY,
        "        if view.is_ours(machine.metadata):\n",
        "        if True:\n",
        (EXPLORED + "[deleted in a shared app]",),
    ),
    Mutation(
        "no ownership check before a machine is changed",
        "a machine that only has the name is taken over",
        PLAN,
        "    if not view.is_ours(machine.metadata):\n",
        "    if False:\n",
        (STORIES + "a_machine_of_its_name_that_is_not_ours_is_left_alone_and_said",),
    ),
    Mutation(
        "ownership by name alone",
        "the Agent of that name in another namespace or of another Roost loses its machine",
        "operator/roost/agents/view.py",
        'metadata.get("roost_owner") == self.owner_id\n            and metadata.get("roost_namespace")'
        " == self.declared.namespace\n            and",
        "True\n            and",
        (CONFIG + "ours_is_what_says_our_owner_namespace_and_name",),
    ),
    Mutation(
        "an app deleted with somebody else's things in it",
        "deleting an app takes all that is in it along",
        DESTROY,
        "return _strangers(view) if alone else _late_volumes(view)",
        "return None if alone else _late_volumes(view)",
        (STORIES + "what_is_not_ours_blocks_the_deletion_of_the_app_until_it_is_gone",),
    ),
    Mutation(
        "a shared app deleted with its Agent",
        "everybody in it goes",
        DESTROY,
        'def _app(view: AgentView) -> Step:\n    if view.declared.spec.fly.app_strategy == "Shared":',
        "def _app(view: AgentView) -> Step:\n    if False:",
        (EXPLORED + "[deleted in a shared app]",),
    ),
    Mutation(
        "a second cluster changes what the first one has",
        "a restore drill destroys production",
        PLAN,
        'if cluster not in ("", view.cluster, view.adopt_from):',
        "if False:",
        (LIFE + "a_second_cluster_with_the_same_backup_only_reads",),
    ),
    Mutation(
        "a deletion in a second cluster destroys what the first one has",
        "so does the end of the drill",
        DESTROY,
        'if cluster in ("", view.cluster, view.adopt_from):',
        "if True:",
        (LIFE + "deleting_the_agent_in_the_second_cluster_destroys_nothing",),
    ),
    # --- Destroy -----------------------------------------------------------------------------------------------
    Mutation(
        "volume deleted before its machine is confirmed gone",
        "Fly refuses, and a machine that nobody asks after any more lives on",
        DESTROY,
        "for phase in (_machines, _late_machines, _volumes, _last_look):",
        "for phase in (_volumes, _machines, _late_machines, _last_look):",
        (STORIES + "it_leaves_machine_first_then_volume_then_app_each_confirmed",),
    ),
    Mutation(
        "no last look before the app goes",
        "what arrived late goes unseen, or what is not ours goes along",
        DESTROY,
        "for phase in (_machines, _late_machines, _volumes, _last_look):",
        "for phase in (_machines, _late_machines, _volumes):",
        (STORIES + "what_is_not_ours_blocks_the_deletion_of_the_app_until_it_is_gone",),
    ),
    Mutation(
        "what is retained deleted",
        "deletionPolicy: Retain is a promise about data",
        DESTROY,
        'def _volumes(view: AgentView) -> Step | None:\n    if view.declared.spec.deletion_policy == "Retain":',
        "def _volumes(view: AgentView) -> Step | None:\n    if False:",
        (EXPLORED + "[retained]",),
    ),
    Mutation(
        "made while it leaves",
        "a deleted Agent only ever goes down",
        PLAN,
        "destroy.step(view) if view.declared.deleting else",
        "destroy.step(view) if view.declared.deleting and view.world.machines else",
        (STORIES + "deleted_in_the_middle_of_being_made_it_leaves_nothing",),
    ),
    Mutation(
        "a destroy that gives up",
        "what is left at Fly is paid for: it slows down to an hour, and never ends",
        DESTROY,
        "after = min(SLOW_SECONDS * 2.0 ** max(0, failure.count - QUICK_TRIES - 1), LONGEST_PAUSE_SECONDS)",
        "after = 1e9",
        (LIFE + "a_stuck_destroy_slows_down_to_an_hour_and_never_ends",),
    ),
    # --- Reconcile and create ----------------------------------------------------------------------------------
    Mutation(
        "a machine made again after a server error",
        "500 is no 404",
        FOLD,
        "                | DeleteMachine()\n            ),\n            errors.NotFound(),\n        ):\n            return _gone(",
        "                | DeleteMachine()\n            ),\n            errors.NotFound() | errors.Unavailable(),\n        ):\n"
        "            return _gone(",
        (SCENES + "reconcile_500_does_not_recreate_however_often",),
    ),
    Mutation(
        "a wait that ran out taken as the machine's end",
        "an image that takes long to pull would be pulled for ever",
        FOLD,
        "case AwaitMachine(id=machine_id), errors.NotYet():\n            return _suspect(world, machine_id)",
        "case AwaitMachine(id=machine_id), errors.NotYet():\n            return _gone(world, machine_id, now)",
        (SCENES + "create_wait_timeout_keeps_the_id", SCENES + "create_image_pull_408_waits"),
    ),
    Mutation(
        "a full region tried for ever",
        "capacity is local: the next region has room",
        FOLD,
        "return replace(world, refused=(*rest, (region, now)))",
        "return world",
        (SCENES + "create_capacity_then_next_region",),
    ),
    Mutation(
        "error_regions ignored",
        "a region that can't be read looks like one whose machines are all gone",
        "operator/roost/agents/reconcile.py",
        "if machine.id not in seen and machine.region not in sweep.error_regions:",
        "if machine.id not in seen:",
        (SAFETY + "a_region_that_can_not_be_listed_hides_nobody",),
    ),
    Mutation(
        "an update of a version that is no longer it",
        "a late update of a stopped process undoes its successor's",
        "operator/roost/fly/client.py",
        'body = {"config": config, "current_version": current_version, ',
        'body = {"config": config, ',
        (SAFETY + "an_update_of_an_older_version_changes_nothing",),
    ),
    Mutation(
        "an upgrade of the operator restarts everybody",
        "a hash of another version can't be compared",
        "operator/roost/agents/machine_config.py",
        'return "" if same and has else "defaults" if has else "declared"',
        'return "declared"',
        (LIFE + "a_new_version_of_the_hash_restarts_nobody",),
    ),
    Mutation(
        "a changed default rolls to all at once",
        "an image that does not boot takes the whole fleet",
        "operator/roost/agents/crowd.py",
        "return key in self._rolling or len(self._rolling) < max(1, int(agents * ROLL_SHARE))",
        "return True",
        (LIFE + "who_has_begun_to_take_up_a_default_may_go_on",),
    ),
    Mutation(
        "one-shot replayed after a status wipe",
        "a restore of long ago is done again, over what has come since",
        "operator/roost/agents/machine_config.py",
        "next((value for value in told if value), _named(view))",
        "next((value for value in told if not value), _named(view))",
        (LIFE + "the_copy_of_a_restored_volume_has_the_record_in_its_machine",),
    ),
    Mutation(
        "what a volume was restored from is forgotten by a crash",
        "the volume is there, and what has filled it is refused for ever",
        "operator/roost/agents/machine_config.py",
        "any(view.names.restores(v.name, value) for v in own)",
        "any(not view.names.restores(v.name, value) for v in own)",
        (LIFE + "a_crash_right_after_the_restore_makes_no_second_one_and_is_no_refusal",),
    ),
    # --- Recovery ----------------------------------------------------------------------------------------------
    Mutation(
        "many that fall silent together are all restarted",
        "a mass silence is the endpoint's fault, and the restarts are ours",
        "operator/roost/agents/recovery.py",
        "    if view.endpoint_suspect:\n",
        "    if False:\n",
        (LIFE + "when_many_fall_silent_together_nothing_is_restarted",),
    ),
    Mutation(
        "an agent that was not heard yet taken as silent",
        "after a change of leader everybody would be restarted",
        PLAN,
        "left = view.listening_since + window - view.now",
        "left = 0.0",
        (LIFE + "after_a_change_of_leader_an_unheard_agent_is_unknown_for_one_window",),
    ),
    Mutation(
        "restarted without end",
        "an agent that no restart helps needs a person",
        "operator/roost/agents/recovery.py",
        "if tried is not None and tried.count >= spec.recovery.max_per_hour:",
        "if False:",
        (LIFE + "so_many_attempts_an_hour_then_a_person_is_asked_and_a_heartbeat_heals",),
    ),
    Mutation(
        "a second machine that is ours destroyed",
        "which of two holds what matters is for a person to say",
        PLAN,
        "    for twin in _twins(view, machine):\n        if twin.suspect:\n            return Act(GetMachine(twin.id),",
        "    for twin in _twins(view, machine):\n        if True:\n            return Act(DeleteMachine(twin.id),",
        (LIFE + "machines_beside_the_kept_one_are_told_and_left_alone",),
    ),
    # --- Status, engine, Kubernetes ----------------------------------------------------------------------------
    Mutation(
        "unconditional status write",
        "its answer brings a deletion into the cache as no news, and nobody looks",
        "operator/roost/kube/objects.py",
        '            "metadata": {"resourceVersion": str(found.version)},\n',
        "",
        (SAFETY + "a_deletion_in_the_moment_of_a_status_write_is_seen_at_once",),
    ),
    Mutation(
        "a status written though nothing differs",
        "idle is free: a write a minute for each of 10,000 Agents is not",
        "operator/roost/agents/reconcile.py",
        "        if same:\n            return None\n",
        "",
        (SAFETY + "at_rest_nothing_is_written",),
    ),
    Mutation(
        "a generation said that was not looked at",
        "who waits for observedGeneration goes on too early",
        "operator/roost/agents/status.py",
        '"observedGeneration": d.generation,\n        "phase"',
        '"observedGeneration": d.generation + 1,\n        "phase"',
        (EXPLORED + "[made]",),
    ),
    Mutation(
        "the id of a machine in doubt dropped from the status",
        "after a crash nothing leads back to it",
        "operator/roost/agents/status.py",
        "machine = _machine(view, current) or _machine_in_doubt(view, previous)",
        "machine = _machine(view, current)",
        (STATUS + "the_status_keeps_a_machine_that_was_not_seen_yet",),
    ),
    Mutation(
        "no alarm after an error",
        "a key that nobody foresaw to fail is never looked at again",
        "operator/roost/engine/engine.py",
        "            # Nobody foresaw it: the key must come back all the same.\n            delay = self.queue.failed(key)",
        "            delay = 0.0",
        (ENGINE + "a_look_that_fails_comes_back_more_and_more_slowly",),
    ),
    Mutation(
        "no alarm for what only a person can heal",
        "it heals, and nobody sees it",
        "operator/roost/agents/reconcile.py",
        "        return Again(after=end.after if due is None else min(end.after, due))",
        "        return Again() if isinstance(end, Stuck) else Again(after=end.after if due is None else min(end.after, due))",
        (
            FIELDS + "a_credential_that_is_not_in_the_settings_is_refused_with_a_sentence",
            AGENTS
            + "test_agent_refusals.py::test_an_account_over_its_quota_is_named_and_it_runs_when_the_quota_is_raised",
        ),
    ),
    Mutation(
        "news during a look forgotten",
        "what changed while it was looked at is never seen",
        "operator/roost/engine/queue.py",
        "        if turn.dirty is not None:\n            self.add(turn.key, turn.dirty)\n",
        "",
        (ENGINE + "news_during_a_look_give_one_more_look_and_never_two_at_once",),
    ),
    Mutation(
        "an older object put over a newer one",
        "a late event takes the world back",
        "operator/roost/kube/records.py",
        "if old is not None and old.uid == new.uid and old.version > new.version:",
        "if False:",
        (RECORDS + "an_older_one_does_not_replace_a_newer_one",),
    ),
    Mutation(
        "no Lease check before a change at Fly",
        "two leaders change the same machine",
        "operator/roost/fly/client.py",
        "        if not is_read(op):\n            self._fence()\n",
        "",
        (FLY + "behind_a_closed_fence_nothing_is_changed_and_all_can_be_read",),
    ),
    Mutation(
        "no Lease check before a write to Kubernetes",
        "two leaders write the same status",
        "operator/roost/kube/client.py",
        '            if method != "GET":\n                self._fence()\n',
        "",
        ("tests/unit/kube/test_fence.py::test_behind_a_closed_fence_everything_is_read_and_nothing_written",),
    ),
    Mutation(
        "a Lease that is too old still lets changes begin",
        "a leader that is cut off does not know that it is followed",
        "operator/roost/engine/leader.py",
        "return holds and self._clock() - self._renewed_at < self._timing.renew_seconds",
        "return holds",
        (LEADER + "a_leader_that_is_cut_off_stops_before_anybody_may_follow",),
    ),
    # --- Secrets, bundle, heartbeat ----------------------------------------------------------------------------
    Mutation(
        "made before its secrets are there",
        "it boots without what it needs, and nobody says what is missing",
        PLAN,
        "    if view.secrets.missing:\n        reason =",
        "    if False:\n        reason =",
        (STORIES + "a_new_agent_waits_for_its_secrets_before_anything_is_made",),
    ),
    Mutation(
        "a staged rotation gives everybody the new values at once",
        "one wrong key takes all agents down together",
        "operator/roost/secrets/lookup.py",
        'return stage.previous, status.get("rotatedFrom")',
        "return stage.active, version",
        (SECRETS + "a_staged_rotation_goes_from_agent_to_agent_each_when_the_one_before_is_ready",),
    ),
    Mutation(
        "a rotation goes on whatever becomes of the first agent",
        "one wrong key takes all agents down, one after the other",
        "operator/roost/secrets/rotation.py",
        'and condition(agent.status, "Ready").get("status") == "True"',
        "and True",
        (SECRETS + "an_agent_that_does_not_come_up_with_the_new_values_stops_it_and_both_ways_out_work",),
    ),
    Mutation(
        "a secret of the operator's namespace serves whoever names it",
        "whoever may create an Agent anywhere has every shared key",
        "operator/roost/secrets/lookup.py",
        "if key.namespace != agent.namespace and not",
        "if False and not",
        (LOOKUP + "a_stranger_learns_of_a_secret_at_home_only_that_it_is_not_for_him",),
    ),
    Mutation(
        "two agents answer as one bot",
        "each takes half of what people write to it",
        "operator/roost/secrets/table.py",
        "return [(ref, elder) for ref, elder in eldest if elder != agent]",
        "return []",
        (SECRETS + "one_bots_token_is_refused_to_the_younger_of_two_agents_until_the_older_is_gone",),
    ),
    Mutation(
        "an error repeats the values of secrets",
        "it stands in the log, the status and the event",
        "operator/roost/fly/client.py",
        "            if error.status:\n                _hush(error)\n",
        "            if error.status < 0:\n                _hush(error)\n",
        (FLY + "no_error_of_setting_secrets_repeats_a_value",),
    ),
    Mutation(
        "in a shared app each machine is given all tokens",
        "every agent may speak as every other",
        "operator/roost/agents/machine_config.py",
        '"ignore_app_secrets": True, ',
        '"ignore_app_secrets": False, ',
        (CONFIG + "in_a_shared_app_a_machine_is_given_its_own_token_only",),
    ),
    Mutation(
        "any token is good",
        "whoever finds the endpoint has the secrets",
        "operator/roost/agents/sessions.py",
        "if key is None or memory is None or not any(good):",
        "if key is None or memory is None:",
        (ENDPOINT + "every_stranger_gets_the_same_answer",),
    ),
    Mutation(
        "old machine's token accepted",
        "a machine that comes back with its host gets secrets and speaks for its successor",
        "operator/roost/agents/sessions.py",
        "            return memory.machine_id != machine_id\n",
        "            return False\n",
        (ENDPOINT + "a_machine_that_came_back_with_its_host_gets_no_secret_and_no_word",),
    ),
    Mutation(
        "the token before works for ever",
        "a token that was rotated because it leaked is as good as new",
        "operator/roost/agents/sessions.py",
        "before = epoch if given or late else max(0, epoch - 1)",
        "before = max(0, epoch - 1)",
        (
            ENDPOINT + "the_token_before_works_until_the_new_one_was_proved",
            ENDPOINT + "the_token_before_ends_by_itself_after_a_while",
        ),
    ),
    Mutation(
        "a revoked agent given its secrets",
        "the kill switch leaves it all it needs to go on",
        "operator/roost/agents/bundle.py",
        "    if declared.revoked:\n",
        "    if False:\n",
        (AGENTS + "test_agent_bundle.py::test_a_revoked_agent_is_given_nothing",),
    ),
    Mutation(
        "the kill switch does not stop the agent",
        "what is revoked must not run until its machine happens to stop",
        "operator/roost/agents/commands.py",
        '        ("revoked", declared.revoked),\n',
        "",
        (
            AGENTS + "test_agent_commands.py::test_the_kill_switch_is_stronger_than_a_pause",
            AGENTS + "test_agent_commands.py::test_a_stop_is_all_that_is_told",
        ),
    ),
    # --- Machines that prove themselves -------------------------------------------------------------------------
    Mutation(
        "the proof of another issuer taken",
        "whoever runs an issuer with a key of that name is every agent",
        "operator/roost/endpoint/oidc.py",
        "                issuer=issuer,\n",
        "",
        (VERIFIER + "what_is_not_for_us_or_not_for_now_is_no_proof",),
    ),
    Mutation(
        "a proof for somebody else taken",
        "whomever the machine has ever proved itself to is the agent",
        "operator/roost/endpoint/oidc.py",
        '"strict_aud": True',
        '"verify_aud": False',
        (VERIFIER + "what_is_not_for_us_or_not_for_now_is_no_proof",),
    ),
    Mutation(
        "another machine's proof taken",
        "one agent of an org has the secrets of all others in it",
        "operator/roost/agents/proof.py",
        "        if current != machine and not ours:\n            raise NotIts\n",
        "",
        (EXCHANGE + "whoever_is_not_its_machine_is_a_stranger", EXCHANGE + "every_stranger_gets_the_same_answer"),
    ),
    Mutation(
        "another image's proof taken",
        "what runs in the machine is not what was declared",
        "operator/roost/agents/proof.py",
        'claims.get("image_digest") != digest',
        "False",
        (EXCHANGE + "whoever_is_not_its_machine_is_a_stranger",),
    ),
    Mutation(
        "a token left behind for a machine that has no use for it",
        "who switches to FlyOidc wants nothing stored at Fly",
        PLAN,
        "    if machine_config.token_left(view, machine):",
        "    if False:",
        (
            AGENTS + "test_agent_bootstrap.py::test_a_token_is_given_up_by_an_update_and_only_then_taken_away",
            PAIRS + "[token given up]",
        ),
    ),
    Mutation(
        "a token stored that nobody would know of",
        "the operator dies, the user thinks better of it, and it stays for ever",
        "operator/roost/agents/machine_config.py",
        '            wanted["roost_token_epoch"] = _PROVES_OVER  #',
        "            pass  #",
        (
            AGENTS
            + "test_agent_bootstrap.py::test_the_operator_may_die_between_the_storing_of_a_token_and_the_change_of_mind",
        ),
    ),
    # --- Fleet -------------------------------------------------------------------------------------------------
    Mutation(
        "a Fleet takes over an Agent that is not its own",
        "somebody's Agent is rewritten with the Fleet's template",
        "operator/roost/fleets/plan.py",
        "if ordinal not in there and name not in view.refused and name not in view.taken:",
        "if ordinal not in there and name not in view.refused:",
        (FLEET + "an_agent_of_that_name_which_is_not_ours_is_left_alone_and_said",),
    ),
    Mutation(
        "a rollout that does not wait",
        "a template that does not boot takes every member",
        "operator/roost/fleets/plan.py",
        "    if any(m not in worst for m in broken):\n",
        "    if False:\n",
        (FLEET + "the_next_is_changed_only_when_the_one_before_is_ready",),
    ),
    Mutation(
        "members removed all at once",
        "one at a time, the next when the one before is gone with its machine",
        "operator/roost/fleets/plan.py",
        '    if highest.deleting:\n        return Rest(True, Reason.SCALING, f"waiting for {highest.name} to be gone")\n',
        "",
        (FLEET + "scale_down_waits_until_the_one_before_is_gone",),
    ),
    Mutation(
        "a Fleet gone before its members",
        "the garbage collector takes them in any order",
        "operator/roost/fleets/plan.py",
        "    if (move := _remove_highest(view.members)) is not None:\n        return move\n    if view.revisions is None:",
        "    if view.revisions is None:",
        (FLEET + "a_fleet_that_is_deleted_removes_its_members_from_the_highest_down_one_at_a_time",),
    ),
)
