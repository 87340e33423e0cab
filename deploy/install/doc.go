// Package install puts the mesh into a cluster, changes it, judges it and takes it out: what `weft install`, `upgrade`,
// `uninstall`, `verify-install`, `precheck`, `manifest`, `profile`, `tag` and `revision` do.
//
// What the user says passes through types, once and in one direction:
//
//	files, --set, profile -> Tree (untyped, merged) -> Operator (typed, strict) -> Plan (Helm releases with values) -> cluster
//
// Everything left of the cluster is a pure function, tested by goldens. The cluster is changed through Helm releases of the
// charts that package deploy embeds, so that Helm's users find what they know and may go on with Helm.
//
// The package never restarts a user's pod, never deletes the user's configuration unless it is told to purge, and never
// writes to standard output: progress goes to a [Progress], results are returned.
//
// Open plan.go first, then apply.go.
package install
