# `make run` and `make test` do all set-up on a fresh Debian machine. `make help` lists the rest.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
export PATH := $(CURDIR)/out/bin:$(HOME)/.cargo/bin:$(PATH)
TARGET := $(or $(CARGO_TARGET_DIR),$(CURDIR)/target)

.PHONY: help setup-run setup-test setup-lint build libcontainer run test unit scenarios vm-tests vm-power vm images clients bench critest critest-bench lint stop clean

help: ## Say what there is
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 14

run: setup-run build images ## Build Orlop, start a cluster on this machine, run the example in it, until Ctrl-C
	@scripts/run.sh "$(TARGET)/release/orlop"

test: setup-test ## All tests: pure, contract and host tests, the built binary with real clients, virtual machines
	@scripts/test.sh

unit: setup-test ## Pure, contract and host tests only
	@scripts/test.sh unit

scenarios: setup-test ## Only the tests that drive the built binary
	@scripts/test.sh scenarios

vm-tests: setup-test ## Only the tests in virtual machines: full cgroup v2, critest, reboots, power cuts
	@scripts/test.sh vm

vm-power: setup-test ## Cut the power of a virtual machine fifty times, during pulls and starts of pods
	@scripts/test.sh vm-power

vm: setup-test images clients ## Open a shell in a virtual machine with a running node (debug build)
	@cargo build --package orlop --package vm
	@ORLOP_TEST_BINARY="$(or $(CARGO_TARGET_DIR),$(CURDIR)/target)/debug/orlop" cargo run --quiet --package vm -- shell

bench: setup-test build images ## Measure start, exec, stop and memory, beside containerd where it is installed
	@scripts/bench.sh "$(TARGET)/release/orlop"

critest: setup-test ## Only cri-tools' validation suite, against `orlop cri`
	@scripts/test.sh critest

critest-bench: setup-test build ## Measure the CRI's calls with critest's benchmarks
	@tests/critest/build.sh out/critest out/images/cache
	@ORLOP_TEST_BINARY="$(TARGET)/release/orlop" ORLOP_TEST_CRITEST="$(CURDIR)/out/critest" \
	  cargo run --quiet --package tests --example critest_bench

build: ## Build the release binary
	cargo build --release --package orlop

libcontainer: setup-test ## Build orlop-libcontainer, the runtime handler for libcontainer (release)
	cargo build --release --manifest-path runtime/libcontainer/Cargo.toml --target-dir "$(TARGET)"

images: ## Make the images of the examples and tests from Debian's packages
	@tests/images/build.sh out/images

clients: ## Build kubectl and crictl from their published Go modules, if they are not installed
	@scripts/clients.sh out/bin

lint: setup-lint ## Formatting, clippy, the project's own rules, licences
	@cargo xtask ci

setup-run:
	@scripts/setup.sh run

setup-test:
	@scripts/setup.sh test

setup-lint:
	@scripts/setup.sh lint

stop: ## Stop what an interrupted `make run` left behind
	@"$(TARGET)/release/orlop" --root out/node stop

clean: ## Remove everything that was built
	rm -rf out target
