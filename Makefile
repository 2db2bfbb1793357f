# The targets `run`, `test`, `bench` and `lint` need a Rust toolchain (rust-version in Cargo.toml), Node.js with npm,
# gcc and make. They install everything else.

.DEFAULT_GOAL := help
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c

# The address and mode of `make run`.
LISTEN ?= 127.0.0.1:5433
MODE ?= shared

# What `make bench-sandbox` runs.
TESTS ?= 1000
ROUNDS ?= 5

# What `make dist` makes archives for. For musl it is built on x86-64.
TARGETS ?= x86_64-unknown-linux-gnu aarch64-unknown-linux-gnu $(if $(filter x86_64,$(shell uname -m)),x86_64-unknown-linux-musl)

# The archive of this machine.
HERE = target/dist/pglite-port-$(shell .ci/version)-$(shell uname -m)-unknown-linux-gnu.tar.gz

# How long `make soak` has clients do everything, in seconds: ten minutes or more.
SOAK_SECONDS ?= 3600

CARGO ?= cargo
BENCHES := $(filter-out calls report,$(patsubst benches/%.rs,%,$(wildcard benches/*.rs)))
RELEASE := target/release/pglite-port
# npm writes this file last.
PGLITE := pglite/node_modules/.package-lock.json
DRIVERS := tests/drivers/node_modules/.package-lock.json
POSTGIS := tests/postgis/node_modules/.package-lock.json
# Programs of PostgreSQL 18, which Debian does not have.
POSTGRES_18 := target/postgres-18/bin
PGLITE_DIST := $(CURDIR)/pglite/node_modules/@electric-sql/pglite/dist

# Tests of shared clusters that are run for every kind of cluster, and those that are also run with turns of 200 µs.
FOR_EVERY_CLUSTER := sessions_bank sessions_crash sessions_ddl sessions_ends sessions_housekeeping sessions_isolation \
	sessions_locks sessions_notify sessions_private sessions_shared_memory
FOR_SHORT_TURNS := sessions_bank sessions_isolation sessions_locks sessions_preemption sessions_shared_memory models

# Tests of damaged input and the number of their inputs in `make fuzz`; in the suite each runs for a second.
FUZZ := a_damaged_stream_of_frames=10000000 damaged_packets_before_a_session=10000000 a_damaged_stream_of_messages=10000000 \
	damaged_rules=10000000 a_damaged_index=10000000 a_damaged_record=10000000 a_damaged_parcel=100000 a_damaged_side_module=1000000 \
	any_module_stays_valid=1000000 a_damaged_file_has_the_same_pieces=1000000

# Tests do not use the user's cache, and share one, because compiling PostgreSQL takes seconds.
TEST_CACHE := $(CURDIR)/target/cache
FOR_TESTS := XDG_CACHE_HOME="$(TEST_CACHE)"
# Elixir's tests run the program that was built with the Rust tests, not an installed one.
FOR_ELIXIR_TESTS := $(FOR_TESTS) LC_ALL=C.UTF-8 PGLITE_PORT="$(CURDIR)/target/debug/pglite-port" PGLITE_DIR="$(PGLITE_DIST)"

# Those of them in which a project takes the program from an archive take the one of `make dist`, and none is skipped.
TEST_DIST = $(FOR_ELIXIR_TESTS) PGLITE_EX_TEST_ALL=1 PGLITE_EX_TEST_ARCHIVE="$(CURDIR)/$(HERE)"

.PHONY: help
help: ## this list
	@sed -nE 's/^([a-z-]+):[^#]*## (.*)/make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 20

.PHONY: run
run: build ## install what is missing, prepare the cluster, serve it and print its URL (LISTEN=127.0.0.1:5433 MODE=shared|isolated)
	exec $(RELEASE) serve --mode $(MODE) --listen $(LISTEN)

.PHONY: build
build: toolchain $(PGLITE) ## the optimised program, and the PGlite files that it hosts
	$(CARGO) build --release --locked
	.ci/split-debug-info $(RELEASE)

.PHONY: dist
dist: toolchain $(PGLITE) ## an archive of the program for each architecture, and for musl, in target/dist (TARGETS="x86_64-unknown-linux-gnu …")
	.ci/dist $(TARGETS)

.PHONY: dist-check
dist-check: dist ## make the archives again in a clone elsewhere, and compare them byte for byte
	.ci/dist-check $(TARGETS)

.PHONY: image
image: ## a container's image of this machine's archive, with a warm cache, in target/dist, and start it
	.ci/image "$(HERE)"
	.ci/image-test "$(HERE:.tar.gz=.image.tar)"

.PHONY: test-dist
test-dist: toolchain $(PGLITE) ## this machine's archive of make dist in Elixir projects with neither Rust nor Node.js, and the package for Hex with it (needs Hex and MIX_DEPS_PATH where there is no network)
	.ci/require mix=elixir
	$(CARGO) build --locked
	mkdir -p $(TEST_CACHE)
	cd elixir && $(TEST_DIST) mix test test/elixir_alone_test.exs test/hex_package_test.exs
	$(TEST_DIST) .ci/elixir-integration test/elixir_alone_test.exs

.PHONY: test-arm64
test-arm64: $(POSTGIS) ## the arm64 archive under QEMU's emulator, also with pages of 16 and 64 KiB, then without traps (some minutes)
	.ci/dist-test aarch64-unknown-linux-gnu
	.ci/dist-test aarch64-unknown-linux-gnu 16384
	.ci/dist-test aarch64-unknown-linux-gnu 65536

.PHONY: test-musl
test-musl: $(POSTGIS) ## the archive for musl where there is no other file than its own and PostGIS's, and in Elixir projects as make test-dist does
	.ci/dist-test x86_64-unknown-linux-musl
	$(MAKE) test-dist HERE=$(HERE:-gnu.tar.gz=-musl.tar.gz)

.PHONY: test-systemd
test-systemd: ## the units of systemd with this machine's archive, under a systemd in a container (as root)
	.ci/systemd-test "$(HERE)"

.PHONY: packaging-check
packaging-check: ## the units of systemd and the objects of Kubernetes in packaging/, checked offline
	.ci/packaging-check

.PHONY: test
test: lint test-rust test-elixir ## everything: formatting, lints, documentation, tests of both languages

.PHONY: lint
lint: toolchain ## formatting, clippy and rustdoc without a warning
	$(CARGO) fmt --check
	$(CARGO) clippy --locked --all-targets -- -D warnings
	$(CARGO) clippy --locked --features loom --lib --tests -- -D warnings
	$(CARGO) clippy --locked --features record-calls --lib --bench calls -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --locked --no-deps --document-private-items
	.ci/require mix=elixir
	cd elixir && mix format --check-formatted

.PHONY: test-rust
test-rust: toolchain $(PGLITE) $(DRIVERS) $(POSTGIS) $(POSTGRES_18) ## the Rust tests
	.ci/packages
	.ci/require script=bsdutils psql=postgresql-client pgbench=postgresql node=nodejs promtool=prometheus \
	  javac=default-jdk-headless /usr/share/java/postgresql.jar=libpostgresql-jdbc-java
	mkdir -p $(TEST_CACHE)
	$(FOR_TESTS) $(CARGO) test --locked --no-fail-fast
	for cluster in directory template; do \
	  $(FOR_TESTS) PGLITE_PORT_TEST_CLUSTER=$$cluster $(CARGO) test --locked --no-fail-fast \
	    $(addprefix --test ,$(FOR_EVERY_CLUSTER)) || exit 1; \
	done
	$(FOR_TESTS) PGLITE_PORT_TEST_CLUSTER=short-turns $(CARGO) test --locked --no-fail-fast \
	  $(addprefix --test ,$(FOR_SHORT_TURNS))
	$(CARGO) test --locked --features loom --lib interleavings

.PHONY: test-elixir
test-elixir: toolchain $(PGLITE) ## the Elixir tests, and those with Postgrex and Ecto where Hex can be reached
	.ci/packages
	.ci/require mix=elixir psql=postgresql-client '/usr/lib/erlang/lib/p1_pgsql-*=erlang-p1-pgsql'
	$(CARGO) build --locked
	mkdir -p $(TEST_CACHE)
	cd elixir && $(FOR_ELIXIR_TESTS) MIX_ENV=test mix compile --warnings-as-errors
	cd elixir && $(FOR_ELIXIR_TESTS) mix test
	$(FOR_ELIXIR_TESTS) .ci/elixir-integration

.PHONY: crash
crash: toolchain $(PGLITE) ## kill the program 1,000 times and cut the power 2,000 times (most of an hour)
	mkdir -p $(TEST_CACHE)
	$(FOR_TESTS) PGLITE_PORT_KILLS=1000 $(CARGO) test --locked --test durable_crash -- --nocapture
	$(FOR_TESTS) PGLITE_PORT_POWER_LOSSES=2000 $(CARGO) test --locked --test durable_power_loss -- --nocapture
	$(FOR_TESTS) PGLITE_PORT_FAULTS=100 $(CARGO) test --locked --test durable_faults -- --nocapture

.PHONY: soak
soak: toolchain $(PGLITE) ## everything clients do for an hour (SOAK_SECONDS=3600) without growth of memory; 10,000 clusters come and go, 200 damaged caches, 1,000 steps of a random history, 2,000 branches, all hostile statements stopped, what is tested with every kind of cluster with short turns (another hour)
	mkdir -p $(TEST_CACHE)
	$(FOR_TESTS) PGLITE_PORT_SOAK_SECONDS=$(SOAK_SECONDS) $(CARGO) test --locked --test soak -- --include-ignored --nocapture
	$(FOR_TESTS) PGLITE_PORT_CLUSTERS=10000 $(CARGO) test --locked --test clusters_come_and_go -- --nocapture
	$(FOR_TESTS) PGLITE_PORT_FLIPS=200 $(CARGO) test --locked --test cache_damage -- --nocapture
	$(FOR_TESTS) PGLITE_PORT_STEPS=1000 PGLITE_PORT_BRANCHES=2000 $(CARGO) test --locked --test clusters_histories -- --nocapture
	$(FOR_TESTS) PGLITE_PORT_HOSTILE=1000 $(CARGO) test --locked --test sessions_hostile -- --nocapture
	$(FOR_TESTS) PGLITE_PORT_TEST_CLUSTER=short-turns $(CARGO) test --locked --no-fail-fast \
	  $(addprefix --test ,$(FOR_EVERY_CLUSTER))

.PHONY: regress
regress: toolchain $(PGLITE) $(POSTGRES_18) ## PostgreSQL's own regression tests, with turns as always and of 200 µs (some minutes; POSTGRES_SOURCE=DIRECTORY, with the sources of PostgreSQL 18)
	$(CARGO) build --locked
	mkdir -p $(TEST_CACHE)
	$(FOR_TESTS) .ci/regress "$(POSTGRES_SOURCE)"
	$(FOR_TESTS) .ci/regress "$(POSTGRES_SOURCE)" 200

.PHONY: fuzz
fuzz: toolchain $(PGLITE) ## damaged input for every parser: 10^7 frames, 10^7 startup packets, rules, modules, stored files (half an hour)
	mkdir -p $(TEST_CACHE)
	for target in $(FUZZ); do \
	  BOLERO_RANDOM_ITERATIONS=$${target##*=} $(CARGO) test --locked --lib $${target%%=*} -- --nocapture || exit 1; \
	done
	$(FOR_TESTS) PGLITE_PORT_MODULES=2000 $(CARGO) test --locked --test user_libraries hostile -- --nocapture
	$(FOR_TESTS) PGLITE_PORT_TEMPLATES=500 $(CARGO) test --locked --test template_damaged -- --nocapture
	$(FOR_TESTS) PGLITE_PORT_SCRAM=2000 $(CARGO) test --locked --test authentication_damaged -- --nocapture

.PHONY: sqlsmith
sqlsmith: toolchain $(PGLITE) ## 100,000 random statements in both modes (half an hour; PGLITE_PORT_STATEMENTS=100000)
	.ci/require sqlsmith=sqlsmith
	mkdir -p $(TEST_CACHE)
	$(FOR_TESTS) PGLITE_PORT_STATEMENTS=$${PGLITE_PORT_STATEMENTS:-100000} \
	  $(CARGO) test --locked --test sqlsmith -- --ignored --nocapture

.PHONY: bench
bench: build ## the figures of README.md, as one table (needs a quiet machine and some minutes)
	.ci/require pgbench=postgresql
	rm -rf target/tmp/figures
	$(CARGO) bench --locked $(addprefix --bench ,$(BENCHES))
	@$(CARGO) bench --quiet --locked --bench report
	.ci/split-debug-info $(RELEASE)
	.ci/require mix=elixir
	cd elixir && PGLITE_PORT="$(CURDIR)/$(RELEASE)" PGLITE_DIR="$(PGLITE_DIST)" MIX_ENV=test mix run bench/socket_server.exs

.PHONY: bench-sandbox
bench-sandbox: build $(POSTGRES_18) ## 1,000 tests in PgliteEx.Sandbox, beside Ecto's sandbox on native PostgreSQL (TESTS=1000 ROUNDS=5; needs Hex or MIX_DEPS_PATH)
	.ci/require mix=elixir
	PGLITE_PORT="$(CURDIR)/$(RELEASE)" PGLITE_DIR="$(PGLITE_DIST)" PGLITE_EX_TEST_ALL=1 \
	  .ci/elixir-integration run bench/sandbox.exs --tests $(TESTS) --rounds $(ROUNDS)

.PHONY: picture
picture: build ## draw monitoring/dashboard.png again (four minutes)
	.ci/dashboard-picture $(RELEASE)

.PHONY: calls
calls: toolchain $(PGLITE) ## count the calls of PGlite's functions, and write those worth a copy to src/instrument/calls.txt (a minute)
	$(CARGO) bench --locked --profile dev --features record-calls --bench calls

.PHONY: hex
hex: ## the package for Hex, with the checksums of the archives that are in target/dist
	.ci/hex

.PHONY: toolchain
toolchain:
	@command -v $(firstword $(CARGO)) > /dev/null || { echo "cargo is missing: install Rust, see https://rustup.rs" >&2; exit 1; }
	@command -v cc > /dev/null || .ci/require cc=gcc

$(PGLITE): pglite/package-lock.json pglite/package.json
	.ci/require npm=npm
	npm ci --prefix pglite
	touch $@

$(DRIVERS): tests/drivers/package-lock.json tests/drivers/package.json
	.ci/require npm=npm
	npm ci --prefix tests/drivers
	touch $@

$(POSTGRES_18): tests/postgres-18/requirements.txt .ci/postgres-18
	.ci/postgres-18 $(@D)

$(POSTGIS): tests/postgis/package-lock.json tests/postgis/package.json
	.ci/require npm=npm
	npm ci --prefix tests/postgis
	touch $@
