# A convenience: DEVELOP.md names the commands behind the recipes. `just` comes with `pip install rust-just`.

bin := if os_family() == "windows" { "Scripts" } else { "bin" }
separator := if os_family() == "windows" { ";" } else { ":" }
python := if os_family() == "windows" { "python" } else { "python3" }

export PATH := justfile_directory() / ".venv" / bin + separator + env("PATH")

# List the recipes
default:
    @just --list

# Make the virtual environment, install the tools and build
setup:
    {{ python }} -m venv .venv
    pip install maturin pre-commit
    just dev --extras test,lint
    pre-commit install

# Build the extension into the environment; `just dev --release` before any timing
dev *args:
    maturin develop --locked {{ args }}

# All tests
test: test-rs test-py

# Tests of the core, without Python
test-rs *args:
    cargo test --locked -p frontier-core {{ args }}

# Tests of the package, against what `just dev` built
test-py *args:
    pytest {{ args }}

# Formatting, lints and types
lint:
    cargo fmt --all --check
    cargo clippy --locked --workspace --all-targets -- -D warnings
    ruff check
    ruff format --check
    mypy

# Format, and fix what can be fixed
fmt:
    cargo fmt --all
    ruff check --fix
    ruff format

# What CI checks, on this platform
check: lint test

# Benchmarks of the core
bench *args:
    cargo bench --locked -p frontier-core {{ args }}

# The release wheel, in dist/
wheel:
    maturin build --release --locked --out dist

# Remove build outputs, but not the environment
clean:
    cargo clean
    rm -rf dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
