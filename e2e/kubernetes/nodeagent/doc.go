// Package nodeagent tests weft-node and weft-cni on a real node: kubelet, containerd, a network plugin and the chart's own DaemonSet. It
// says nothing about the mesh: its apps (prober) need no control plane, so that what they see is the kernel's redirection alone.
//
// The tests need a running node of this machine, made by the command in e2e/kubernetes/cluster, without a mesh on it: WEFT_E2E_CLUSTER is its directory.
// They edit the node's files and enter its network namespace, as root. What they change they put back. cluster_test.go has the node and
// the agent, pods_test.go the apps; each other file is one promise.
package nodeagent
