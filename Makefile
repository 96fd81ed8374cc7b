# The commands of this project. Each installs what it needs by itself (scripts/setup).

CARGO ?= cargo

.PHONY: test demo bench lint setup

test:
	@scripts/test

demo:
	@scripts/demo

bench: setup
	$(CARGO) build --release --locked --bin pgcat
	$(CARGO) run --release --locked -p bench

lint:
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets --locked -- -D warnings

setup:
	@scripts/setup
