// Package e2e holds the scenarios: what a user of the mesh writes and then sees,
// through real Envoys. A scenario is named after its number in the requirements
// (TestS07WeightedSubsets) and knows nothing of where it runs: it speaks kubectl's verbs,
// which the sandbox answers as Kubernetes does (WEFT_E2E_KUBECTL="kubectl" runs the same
// tests on a cluster). Start with cluster.go for how tests talk, then any *_test.go.
package e2e
