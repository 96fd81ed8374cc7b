# The commands of this project. Each sets up what it needs by itself (scripts/setup).

# Two linkers at once on a small machine run out of memory before they run out of processors.
CARGO ?= cargo

.PHONY: test demo bench lint setup

setup:
	@scripts/setup

lint: setup
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets --locked -- -D warnings

test: lint
	@scripts/test

demo:
	@scripts/demo

bench: setup
	$(CARGO) build --release --locked --bin pgcat -p pgcat-stream
	$(CARGO) run --release --locked -p bench
