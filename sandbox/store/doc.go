// Package store holds every object of one sandbox: the part of a Kubernetes
// API server that remembers. It knows kinds, versions, watches and the file
// mirror that weftd reads. It never validates, never fills in defaults and
// never decides what should exist: package api does the first two, package
// control the third. Open store.go first.
package store
