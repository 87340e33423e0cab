package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/weft-mesh/weft/identity"
	"github.com/weft-mesh/weft/mesh"
	"github.com/weft-mesh/weft/webhook"
)

// injection is what flags and --injection-config say about injected pods.
func (o *options) injection(store *mesh.Store, log *slog.Logger) (webhook.Options, error) {
	base := webhook.Options{
		Revision:         o.revision,
		ProxyImage:       o.proxyImage,
		StartGate:        webhook.StartGate(o.startGate),
		NodesHold:        webhook.NodeGate(store.Nodes, log),
		TrustDomain:      o.trustDomain,
		ClusterDomain:    o.clusterDomain,
		RootNamespace:    o.rootNamespace,
		DiscoveryAddress: o.discoveryAddress,
	}
	if o.injectionConfig == "" {
		return base, nil
	}
	var text [2][]byte
	for i, key := range []string{"values", "config"} {
		var err error
		text[i], err = os.ReadFile(filepath.Join(o.injectionConfig, key))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return base, fmt.Errorf("--injection-config: %w", err)
		}
	}
	out, err := webhook.ReadOptions(base, text[0], text[1])
	if err != nil {
		return base, fmt.Errorf("--injection-config %s: %w", o.injectionConfig, err)
	}
	return out, nil
}

// followInjection puts changes of --injection-config in force until ctx ends. One that cannot be used changes nothing.
func (o *options) followInjection(ctx context.Context, store *mesh.Store, injector *webhook.Server, log *slog.Logger) error {
	if o.injectionConfig == "" {
		return nil
	}
	changes, err := identity.WatchDir(ctx, o.injectionConfig)
	if err != nil {
		return fmt.Errorf("--injection-config: %w", err)
	}
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-changes:
		}
		next, err := o.injection(store, log)
		if err == nil {
			err = injector.Reload(next)
		}
		if err != nil {
			log.Error("settings of the injection not used; the former ones stay in force", "error", err)
			continue
		}
		log.Info("settings of the injection are in force", "from", o.injectionConfig)
	}
}
