//! Cluster tests, benchmarks and the demo.
