// Package kubernetes runs a real Kubernetes for tests: programs that build.sh makes from
// Kubernetes' own Go modules, in the network namespace of the test. So far that is etcd and
// kube-apiserver, which is all that reading and writing objects needs.
//
// Tests that use it are skipped, with the command that helps, where the programs were not built. Open
// apiserver.go first.
package kubernetes
