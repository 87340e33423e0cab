// Package cluster is what weftd does with a Kubernetes API server besides reading the
// mesh: it keeps the certificate authority in a Secret, finds the keys that service
// account tokens are signed with, and, on the one replica that is the leader, writes the mesh's root
// into a ConfigMap of every namespace and into the webhook configurations.
//
// It never writes anything else, and replicas that are not the leader write nothing but
// a new authority, which only one of them can create. Open cluster.go first.
package cluster
