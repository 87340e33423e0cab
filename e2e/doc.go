// Package e2e holds the scenarios: what a user of the mesh writes and then sees,
// through real Envoys. A scenario is named after its number in the requirements
// (TestS07WeightedSubsets) and knows nothing of where it runs: it speaks kubectl's verbs,
// which the sandbox answers as Kubernetes does. WEFT_E2E_KUBECTL="kubectl" runs the same
// tests on a cluster that has the mesh (weft install); what is different there is in
// cluster.go alone. Scenarios run beside each other unless they change the whole mesh
// (meshed, versions; alone). Start with cluster.go for how tests talk, then any *_test.go.
//
// A failed scenario prints its pods, events, the last lines of their logs and what weftd
// complains about. WEFT_E2E_KEEP=1 leaves its namespace.
package e2e
