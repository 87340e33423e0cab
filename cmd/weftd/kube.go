package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"runtime/debug"

	"golang.org/x/sync/errgroup"
	"k8s.io/client-go/rest"
	"k8s.io/klog/v2"

	"github.com/weft-mesh/weft/cmd/weftd/cluster"
	"github.com/weft-mesh/weft/identity"
	"github.com/weft-mesh/weft/mesh"
	"github.com/weft-mesh/weft/mesh/kube"
)

// fromKube is a source that reads an API server.
func fromKube(config *rest.Config, rootNamespace, meshConfigMap string, log *slog.Logger) source {
	return func(ctx context.Context, store *mesh.Store, changing, loaded func()) error {
		s, err := kube.New(kube.Config{REST: config, Store: store, RootNamespace: rootNamespace, MeshConfigMap: meshConfigMap, Changing: changing, Log: log})
		if err != nil {
			return err
		}
		group, ctx := errgroup.WithContext(ctx)
		group.Go(func() error { return s.Run(ctx) })
		group.Go(func() error {
			select {
			case <-s.Synced():
				loaded()
				debug.FreeOSMemory() // the first lists are all garbage by now
			case <-ctx.Done():
			}
			return nil
		})
		return group.Wait()
	}
}

// connect is the API server of --kube; nil without it.
func (o *options) connect(log *slog.Logger) (*cluster.Cluster, error) {
	if !o.kube {
		return nil, nil
	}
	klog.SetSlogLogger(log) // client-go's own log
	c, err := cluster.Connect(o.kubeconfig)
	if err != nil {
		return nil, fmt.Errorf("--kube: %w", err)
	}
	return c, nil
}

// authorityStore is where the certificate authority is kept.
func (o *options) authorityStore(c *cluster.Cluster, log *slog.Logger) identity.Store {
	if c == nil || o.caDir != "" {
		return identity.Dir(o.caDir)
	}
	return c.Authority(o.rootNamespace, log)
}

// source is what the mesh is read from.
func (o *options) source(c *cluster.Cluster, log *slog.Logger) source {
	if c == nil {
		return fromFiles(o.config, log)
	}
	return fromKube(c.REST(), o.rootNamespace, o.meshConfigMap(), log)
}

// meshConfigMap is the name of the ConfigMap with the MeshConfig. In a cluster Istio has one for each revision.
func (o *options) meshConfigMap() string {
	if !o.kube || o.revision == "default" {
		return "istio"
	}
	return "istio-" + o.revision
}

// lead does what only one replica may do, as long as this one is it.
func (o *options) lead(ctx context.Context, c *cluster.Cluster, authority *identity.Authority, serving <-chan struct{}, events *cluster.Events, log *slog.Logger) error {
	name := os.Getenv("POD_NAME")
	if name == "" {
		var err error
		if name, err = os.Hostname(); err != nil {
			return errors.New("POD_NAME is not set, and this machine has no name: replicas cannot be told apart")
		}
	}
	return c.Lead(ctx, cluster.Leadership{
		Namespace: o.rootNamespace,
		Revision:  o.revision,
		Identity:  fmt.Sprintf("%s_%d", name, os.Getpid()),
		Authority: authority,
		Services:  []string{"istiod", "istiod-" + o.revision},
		Serving:   serving,
		Events:    events,
		Log:       log,
	})
}
