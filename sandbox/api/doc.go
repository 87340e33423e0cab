// Package api is what a Kubernetes API server does between a request and its
// store: it reads YAML strictly, fills in defaults, validates, assigns
// ClusterIPs, calls admission webhooks, and merges applied manifests with what
// is there. It never starts anything: package control turns Deployments into
// pods. Open apply.go first, then create.go.
package api
