// Package programs makes what a Kubernetes node runs, in bin/ of the checkout: Kubernetes, containerd, network plugins and cluster DNS from
// their Go modules, container images for tests out of programs of this machine. Nothing comes from a container registry or a
// release page. What is there already, in the version that is wanted, is not made again.
//
// Open module.go first: one function builds any module with its own go.mod.
package programs
