// Package redirect says which of a pod's traffic goes through its sidecar, and makes the kernel do it.
//
// It knows the Spec (what is captured; the only thing that the injector and the CNI plugin share, as one pod annotation), and
// how to express a Spec as nftables or iptables rules inside the pod's network namespace: Apply, Verify, Remove and print.
// It never talks to Kubernetes, never looks at pods, and with nftables never starts a process. Every rule lives in
// a table or in chains of its own, so that nothing of the pod's other rules is touched.
//
// Start with spec.go. rules.go holds the reasoning about which rule stands where; the two backends only say how.
package redirect
