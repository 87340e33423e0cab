// Package identity knows who is who in the mesh: the trust domain, SPIFFE IDs,
// the certificate authority and the SVIDs it signs, the bundle of roots that
// peers trust, and what a Kubernetes service account token says about the pod
// that carries it.
//
// It never reads a Kubernetes API, never asks a proxy who it is, and never
// writes a private key or a token into a log, an error or a metric. Open
// authority.go first, then token.go.
package identity
