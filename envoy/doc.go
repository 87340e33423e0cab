// Package envoy turns a mesh.Snapshot into what each proxy is told: listeners, routes, clusters, endpoints.
//
// It knows Envoy's API and Istio's names and defaults. It does no I/O, reads no clock, and never fails: what cannot be
// translated is left out and listed as a Problem. Equal snapshots give equal bytes.
//
// Open world.go first: it says which sets of resources a proxy gets and how they are kept between snapshots. bundle.go is all that
// is derived from one host, outbound.go joins the hosts that one class of clients sees, inbound.go is a
// workload's own side, gateway.go a gateway's.
package envoy
