package main

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	corev1client "k8s.io/client-go/kubernetes/typed/core/v1"

	"github.com/weft-mesh/weft/redirect"
)

// weftd gives pods the fast start gate, kubelet's hook, when every node has this annotation with this value (mesh.NodeStartGate, mesh.GateHook; a test holds them
// together: package mesh would bring Istio's API along).
const (
	gateAnnotation = "weft.dev/start-gate"
	gateHook       = "hook"
)

// announcement keeps gateAnnotation of one node.
type announcement struct {
	api  corev1client.NodesGetter
	node string
	log  *slog.Logger
}

// keep says what the node's kernel can do, and tries until the API server knows.
func (a *announcement) keep(ctx context.Context, b redirect.Backend) {
	gated := redirect.Default()
	gated.Gate = redirect.PortHealth
	value := gateHook
	if err := redirect.Try(b, gated); err != nil {
		value = ""
		a.log.Warn("pods of this node cannot be started by the fast gate; with --start-gate=auto all pods of the mesh get a startup probe, which costs each a second", "error", err)
	}
	for {
		err := a.set(ctx, value)
		if err == nil || ctx.Err() != nil {
			return
		}
		a.log.Warn("cannot change the node's annotation, trying again", "node", a.node, "annotation", gateAnnotation, "wanted", value, "error", err)
		select {
		case <-ctx.Done():
			return
		case <-time.After(2 * time.Second):
		}
	}
}

// set gives the node's annotation a value; empty takes it away.
func (a *announcement) set(ctx context.Context, value string) error {
	var v any
	if value != "" {
		v = value
	}
	patch, err := json.Marshal(map[string]any{"metadata": map[string]any{"annotations": map[string]any{gateAnnotation: v}}})
	if err != nil {
		return err
	}
	if _, err := a.api.Nodes().Patch(ctx, a.node, types.MergePatchType, patch, metav1.PatchOptions{FieldManager: "weft-node"}); err != nil {
		return fmt.Errorf("patch node %s: %w", a.node, err)
	}
	return nil
}
