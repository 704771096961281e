"""The house's arrows: imports go down only, packages stay free of what they must not know. Read from the source."""

from __future__ import annotations

import ast
import functools
import graphlib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

FLOORS: dict[str, str] = {
    "": """
        vectors
        server
    """,
    "vectors": """
        cancellation confined errors shares
        data durable finding opened vocabulary
        positions quarantine
        calibration_record defaults operations sites
        vector
        applied
        formats training
        behaviour calibration client files plain store study
        __init__
    """,
    "vectors.behaviour": """
        __init__ prompts answers
        changes judge rule side_effects
        classifier report
    """,
    "vectors.calibration": """
        __init__ prompts search view
        measure plot
        calibrate
        task
    """,
    "vectors.client": """
        errors
        answers
        calls
        clients
        __init__
    """,
    "vectors.data": """
        items marks contrasts options partners row
        cells conversations json_rows shapes
        choices csv_rows pairs parquet_rows
        rows
        published reading
        paper_wording split
        tasks
        __init__
    """,
    "vectors.formats": """
        arrays hooks json_object options zips
        archive codec facts headers making packing
        array_rows interpretation
        autoencoder gguf npy pytorch safetensors svec
        brainpatch folder
        __init__
    """,
    "vectors.plain": """
        __init__ passes rows
        gates model_view scores
        steered_model
        steering
        training
    """,
    "vectors.store": """
        generation records
        layout
        inspection
        repair
        registry
        __init__
    """,
    "vectors.study": """
        __init__ definition
        data figures records
        effects run
        choices comparisons grids
        pictures report
        tables
    """,
    "vectors.training": """
        __init__ canvas model_view progress prompts statistics values
        baseline_directions options plots probe_texts significance
        adaptive_plot contrast method probe_fitting probe_plots
        examiner probe_measures
        directions race
        apart outcomes search
        adaptive_vectors constant_answers probe_outcomes
        adaptive_search held_out
        baselines probe_training
        report retention size_curve
        verdict
        adaptive_report
        adaptive_training
        recomputed train
        evaluate sweep
        task
    """,
    "server": """
        __init__ config errors keys durable_database fair_queue kernels
        steering
        engine marks
        detokenizer watchdog
        answers
        text
        jobs response_store shipped typical_norms
        api doctor page training
        demo
        app bench
        cli
    """,
    "server.answers": """
        __init__ call_shape closed_list json_text matching narrowing python_calls reading schema_refused tools
        call_stream channels conventions regions schema_dialects vocabulary
        compiler
        json_schema template_probe
        chat_format tagged_grammar
        grammar_source parts reply
    """,
    "server.api": """
        __init__ http
        generation
        chat completions decisions registry responses streams training
        about
    """,
    "server.api.about": """
        __init__ examples objects openapi_schemas
        health models openapi tokens
        docs
    """,
    "server.api.chat": """
        __init__ objects wire
        routes
    """,
    "server.api.completions": """
        __init__ objects wire
        routes
    """,
    "server.api.decisions": """
        __init__ input multiple_choice objects
        wire
        routes
    """,
    "server.api.generation": """
        __init__ content mailbox measurement objects tools wire
        answer_head running scoring steering
        choices variants
        dialogue logprobs probes
    """,
    "server.api.http": """
        __init__ objects paths
        json_response
        client_address connection description engine_errors metrics observed open_streams pages places preconditions
        rate_limits wire
        bodies failures parameters services timeouts tracing
        auth cors request_log sse uploads
        limiting
    """,
    "server.api.registry": """
        __init__ objects parameters wire
        routes
    """,
    "server.api.responses": """
        __init__ objects
        events items
        output wire
        echo
        response
        routes
    """,
    "server.api.streams": """
        __init__ objects wire
        routes
    """,
    "server.api.training": """
        __init__ objects
        wire
        files jobs
    """,
    "server.bench": """
        __init__ paper_loop spread structured traffic
        offline online plots
        adaptive training
    """,
    "server.cli": """
        errors logs output signals
        client doctor loading
        bench serve training
        parser
        __init__
        __main__
    """,
    "server.cli.bench": """
        __init__ result
        offline online
        command
    """,
    "server.cli.client": """
        __init__ connection conversation parallel
        vectors
        chat
    """,
    "server.cli.loading": """
        __init__ progress vllm_engine
        engine
    """,
    "server.cli.serve": """
        __init__ banner connections listening tracing
        command
    """,
    "server.cli.training": """
        __init__ answer_tables generated_options progress study_tables tables
        parser
        options probe_tables study
        files
        generation judging local remote report
        generated
        command
    """,
    "server.demo": """
        __init__ documents facts initial probe tone topics
        beliefs card persona style
        quiz
        chat
        corpus heldout
        steer tokens
        batches dose evaluate
        train
    """,
    "server.engine": """
        current errors fingerprint free_memory
        __init__ attention entry_points generation_config grammar pacing packing precision refusal
        late_entry masks recurrent
        branches cache checkpoint_files context entry_probe evidence fused_blocks request self_test towers
        checkpoint fusion_probe protocol readings sampler wanted
        adapter weights
        admission description kv_pages queries
        page_table
        sequence
        model
        scheduler
        memory step
        buffers
        runner
        outputs
        verdicts
        engine vllm
    """,
    "server.engine.vllm": """
        __init__ installed messages self_test sites
        drawing rows scheduler steering
        live
        pages
        driver worker
        engine
        start
    """,
    "server.engine.attention": """
        __init__ interface latent partial
        compiled function stretches
        choice
    """,
    "server.kernels": """
        __init__ building structures
        library
    """,
    "server.engine.recurrent": """
        __init__ slots states
        step
        probe
    """,
    "server.jobs": """
        __init__ records
        failures schema trainer
        database
        files progress states
        publication
        worker
    """,
    "server.page": """
        __init__ routes
    """,
    "server.steering": """
        __init__ inline norms parts slots
        dose
        plan
        readings resolution
        bank
        hooks
    """,
    "server.training": """
        __init__ engine_view
        steering_trainer
    """,
}
"""The floors of each package, a line each, from the ground up. Neighbours on one floor do not import each other."""

ROOMS = {room: [floor.split() for floor in floors.strip().splitlines()] for room, floors in FLOORS.items()}

COMMANDS = ("server.cli", "server.demo.", "server.bench.")
"""What is run by name: `tiller`, the steps that make the embedded model, and measurements."""

MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts): path
    for package in ("vectors", "server")
    for path in sorted((ROOT / package).rglob("*.py"))
}


@functools.cache
def tree_of(path: Path) -> tuple[ast.AST, ...]:
    """Everything in the file, the module first."""
    return tuple(ast.walk(ast.parse(path.read_text())))


def module_of(name: str) -> str | None:
    """The key in `MODULES` of what an import names; None for what is not ours."""
    return next((module for module in (name, f"{name}.__init__") if module in MODULES), None)


@functools.cache
def imports_of(path: Path) -> frozenset[str]:
    """Every module that the file imports, anywhere in it: keys of `MODULES`, or others' names."""
    found: set[str] = set()
    for node in tree_of(path):
        if isinstance(node, ast.Import):
            found |= {module_of(alias.name) or alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: write imports in full"
            assert node.module is not None
            found |= {
                module_of(f"{node.module}.{alias.name}") or module_of(node.module) or node.module
                for alias in node.names
            }
    return frozenset(found)


def floor_in(room: str, name: str) -> int:
    """The floor of `name`, a module or a package of `room`."""
    floors = [floor for floor, names in enumerate(ROOMS.get(room, [])) if name in names]
    assert len(floors) == 1, f"{name} is on {len(floors)} floors of {room or 'the house'}: put it on one in FLOORS"
    return floors[0]


def test_imports_go_down() -> None:
    for module, path in MODULES.items():
        own = module.split(".")
        for depth, name in enumerate(own):
            floor_in(".".join(own[:depth]), name)
        for imported in imports_of(path) & MODULES.keys():
            other = imported.split(".")
            depth = next(depth for depth, (mine, theirs) in enumerate(zip(own, other, strict=False)) if mine != theirs)
            room = ".".join(own[:depth])
            assert floor_in(room, other[depth]) < floor_in(room, own[depth]), (
                f"{module} imports {imported}, not below it"
            )


def test_every_room_is_there() -> None:
    rooms = {".".join(module.split(".")[:depth]) for module in MODULES for depth in range(module.count(".") + 1)}
    assert rooms == set(ROOMS)
    for room, floors in ROOMS.items():
        for name in [name for names in floors for name in names]:
            place = f"{room}.{name}".removeprefix(".")
            assert place in MODULES or place in rooms, f"{place} is in FLOORS only"


def test_no_cycles() -> None:
    graph = {module: (imports_of(path) & MODULES.keys()) - {module} for module, path in MODULES.items()}
    graphlib.TopologicalSorter(graph).prepare()


def test_vectors_steering_and_engine_know_no_http() -> None:
    for module, path in MODULES.items():
        if module.startswith(("vectors", "server.steering", "server.engine")):
            roots = {name.partition(".")[0] for name in imports_of(path)}
            allowed = {"httpx"} if module == "vectors.client.clients" else set()
            assert not roots & {"fastapi", "starlette", "uvicorn", "httpx"} - allowed, module


def test_only_commands_read_argv_and_environment() -> None:
    for module, path in MODULES.items():
        if not module.startswith(COMMANDS):
            for node in tree_of(path):
                if isinstance(node, ast.Attribute):
                    assert node.attr not in ("argv", "environ", "getenv"), f"{module}, line {node.lineno}"


def test_every_module_says_what_it_is_for() -> None:
    for module, path in MODULES.items():
        tree = tree_of(path)[0]
        assert isinstance(tree, ast.Module)
        assert ast.get_docstring(tree), module


def test_nothing_is_unpickled() -> None:
    for module, path in MODULES.items():
        for node in tree_of(path):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
                assert {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}["weights_only"] == "True"
        assert "pickle" not in imports_of(path), module
