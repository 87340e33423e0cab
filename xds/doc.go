// Package xds knows who is connected, what each proxy has and what it gets: the
// aggregated discovery service, in its delta and its state-of-the-world form, with
// secrets on the same stream, and the monitoring pages that show all of it.
//
// It never looks inside a resource and never decides what a proxy should have:
// that is envoy.World's business. It holds no lock while it writes to a proxy, encodes
// nothing twice, and takes a proxy's identity from its token alone.
//
// Open server.go first, then session.go (one connected proxy) and delta.go (the
// protocol); encode.go is where work is shared between streams.
package xds
