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
// snapshot for each proxy, as control planes that compute per proxy have, it only gets more.
type one struct{}

func (one) ID(*core.Node) string { return "all" }

// serveBaseline is the process of the go-control-plane server. It derives the same resources as weft and gives them to the cache
// as messages; only what comes after that is measured.
func serveBaseline(s size, path string) error {
	plane, err := newPlane(s)
	if err != nil {
		return err
	}
	plane.derive()
	ctx := context.Background()
	snapshots := cache.NewSnapshotCache(false, one{}, log.LoggerFuncs{})
	version := 0
	snapshot := func() (*cache.Snapshot, error) {
		resources := map[string][]types.Resource{}
		for _, set := range plane.world.Sets(plane.proxy(0)) {
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
		version++
		return cache.NewSnapshot(strconv.Itoa(version), resources)
	}
	first, err := snapshot()
	if err != nil {
		return err
	}
	if err := snapshots.SetSnapshot(ctx, "all", first); err != nil {
		return err
	}
	g := grpc.NewServer()
	discovery.RegisterAggregatedDiscoveryServiceServer(g, server.NewServer(ctx, snapshots, nil))
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	go func() { _ = g.Serve(l) }()
	to := plane.setup()
	to.TLS, to.Address = false, l.Addr().String()
	if err := to.write(path); err != nil {
		return err
	}
	return answer(func(verb string, _ []string) (any, error) {
		switch verb {
		case "usage":
		case "tidy":
			tidy()
		default:
			if err := plane.change(verb); err != nil {
				return nil, err
			}
			plane.derive()
			next, err := snapshot()
			if err != nil {
				return nil, err
			}
			begun, err := used()
			if err != nil {
				return nil, err
			}
			return begun, snapshots.SetSnapshot(ctx, "all", next)
		}
		return used()
	})
}
