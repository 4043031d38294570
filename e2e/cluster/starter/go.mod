module croft.dev/e2e/cluster/croft-cluster

go 1.26.0
