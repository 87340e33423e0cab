// Package node keeps the CNI plugin working on one node: it installs the plugin's binary and its entry in the node's network configuration, watches
// both, answers the plugin's questions, and redirects pods whose network was made while the plugin was not in the chain.
//
// It knows files, network namespaces and the plugin's socket. It never talks to Kubernetes: pods and sandboxes come through two small
// interfaces (Pods, Sandboxes), which cmd/weft-node implements. Everything that it changes on the node is written down first (undo.go), so that Uninstall takes
// back exactly that; nothing is taken back when the process merely ends. Removing or restarting a pod is never its remedy.
//
// Start with install.go. conflist.go edits configurations byte by byte, choose.go says which one counts, repair.go heals pods.
package node
