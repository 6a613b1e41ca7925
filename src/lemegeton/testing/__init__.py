"""The test kit: conformance checks, faulty logs, history checker and simulation, for this project and for its users."""
