// Package sandbox runs a mesh on one machine without a cluster. A sandbox is a
// network namespace, the node, with one daemon inside it that plays API server,
// controllers, cluster DNS, service proxy and (through package pod) kubelet; pods
// are network namespaces of their own, reached through the real CNI chain, and
// everything that is not Kubernetes is the real thing: webhook, plugin, xDS, Envoy.
//
// The package knows how the pieces are put together and how they are taken
// apart again, also after a crash. It decides nothing about objects (packages store,
// api and control do). Open up.go first for what a user starts, then daemon.go.
package sandbox
