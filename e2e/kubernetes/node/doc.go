// Package node runs a whole Kubernetes node on this machine without Docker: etcd, the API server, controllers, scheduler, kubelet,
// kube-proxy, containerd and cluster DNS, the real ones, in a few seconds.
//
// A cluster is one process tree in PID, mount, network and host name namespaces of its own, below one process that is PID 1 in there (init.go). So
// /etc/cni/net.d, /opt/cni/bin, /run and /var/lib/kubelet are where they are on any node and yet nobody else's, several clusters
// run at a time, and the end of that one process is the end of everything. up.go is the recipe: open it first.
// components.go says how each program is started, layout.go where its files are.
//
// It knows nothing of the mesh, and leaves nothing behind: what a cluster writes is in its directory.
package node
