package main

import (
	"context"
	"fmt"
	"net"
	"strconv"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/envoyproxy/go-control-plane/pkg/cache/types"
	"github.com/envoyproxy/go-control-plane/pkg/cache/v3"
	"github.com/envoyproxy/go-control-plane/pkg/log"
	server "github.com/envoyproxy/go-control-plane/pkg/server/v3"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/weft-mesh/weft/envoy"
)

// one is the node hash of the baseline: all proxies share one snapshot, which is the cheapest way to use the cache. With a
// snapshot for each proxy, as control planes that compute per proxy have, it only gets more. (All therefore get what the first one needs,
// its inbound listener too.)
type one struct{}

func (one) ID(*core.Node) string { return "all" }

// baseline is the process of the go-control-plane server. It derives the same resources as weft and gives them to the cache
// as messages; only what comes after that is measured.
type baseline struct {
	*plane
	cache   cache.SnapshotCache
	version int
}

func serveBaseline(s size, path string) error {
	plane, err := newPlane(s)
	if err != nil {
		return err
	}
	plane.derive()
	ctx := context.Background()
	b := &baseline{plane: plane, cache: cache.NewSnapshotCache(false, one{}, log.LoggerFuncs{})}
	if err := b.publish(); err != nil {
		return err
	}
	g := grpc.NewServer()
	discovery.RegisterAggregatedDiscoveryServiceServer(g, server.NewServer(ctx, b.cache, nil))
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	go func() { _ = g.Serve(l) }()
	to := plane.setup(true)
	// There is one snapshot: all ask for what is in it.
	for n := range to.Namespaces {
		to.Namespaces[n] = to.Namespaces[0]
	}
	to.Address = l.Addr().String()
	if err := to.write(path); err != nil {
		return err
	}
	return answer(b.do)
}

func (b *baseline) publish() error {
	next, err := b.snapshotOf(b.proxy(0, true))
	if err != nil {
		return err
	}
	return b.cache.SetSnapshot(context.Background(), "all", next)
}

func (b *baseline) snapshotOf(p envoy.Proxy) (*cache.Snapshot, error) {
	resources := map[string][]types.Resource{}
	for _, set := range b.world.Sets(p) {
		for t := range envoy.NumTypes {
			for _, r := range set.Resources[t] {
				m, err := (&anypb.Any{TypeUrl: t.TypeURL(), Value: r.Body}).UnmarshalNew()
				if err != nil {
					return nil, fmt.Errorf("%s: %w", r.Name, err)
				}
				resources[t.TypeURL()] = append(resources[t.TypeURL()], m)
			}
		}
	}
	b.version++
	return cache.NewSnapshot(strconv.Itoa(b.version), resources)
}

func (b *baseline) do(verb string, _ []string) (any, error) {
	switch verb {
	case "usage":
		return used()
	case "tidy":
		tidy()
		return used()
	}
	if err := b.change(verb); err != nil {
		return nil, err
	}
	b.derive()
	next, err := b.snapshotOf(b.proxy(0, true))
	if err != nil {
		return nil, err
	}
	begun, err := used()
	if err != nil {
		return nil, err
	}
	return begun, b.cache.SetSnapshot(context.Background(), "all", next)
}
