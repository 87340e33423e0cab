// Package control makes the world match what the store asks for: Deployments
// become ReplicaSets and pods, selectors become EndpointSlices, namespaces get
// their service account and the mesh's root certificate, and pods are handed
// to the kubelet side. Every rule is level-triggered: a sync function looks at
// the store as it is now and makes one step, so the order of events never
// matters. It never opens a socket to a pod and never writes nftables rules.
// Open control.go first.
package control
