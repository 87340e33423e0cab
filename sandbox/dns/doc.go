// Package dns answers cluster DNS as CoreDNS' kubernetes plugin does (Kubernetes
// DNS-Based Service Discovery 1.1.0): services, headless services, stateful
// pods, ExternalName, SRV, PTR. A Zone is built from objects and never
// changes; the server swaps whole zones. It never reads a store itself. Open
// zone.go first.
package dns
