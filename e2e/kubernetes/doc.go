// Package kubernetes runs a real API server for tests that need no more: etcd and kube-apiserver in the network namespace of the
// test. Whole nodes, with kubelet and containerd, are in package node; package programs compiles what both run, from Kubernetes'
// own Go modules; suite is `make e2e`.
//
// Tests that use it are skipped, with the command that helps, where the programs were not built. Open
// apiserver.go first.
package kubernetes
