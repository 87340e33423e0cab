package main

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	corev1client "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/util/retry"
)

// taintKey is Istio's, so that nodes which are registered with it (kubelet --register-with-taints) are freed by us too.
const taintKey = "cni.istio.io/not-ready"

// nodeTaint keeps the taint of one node as its chain is.
type nodeTaint struct {
	api   corev1client.NodesGetter
	node  string
	after time.Duration // of a broken chain, before the node is tainted
	log   *slog.Logger
}

// follow takes what is wrong with the chain ("" when nothing is) and keeps the taint accordingly, until ctx ends. What is neither ready nor
// broken for long changes nothing: a chain that is repaired within milliseconds is nobody's business.
func (t *nodeTaint) follow(ctx context.Context, problems <-chan string) {
	var due <-chan time.Time
	known, problem := false, ""
	for {
		select {
		case <-ctx.Done():
			return
		case p := <-problems:
			if known && (p == "") == (problem == "") {
				problem = p
				continue
			}
			if known, problem = true, p; p == "" {
				due = time.After(0)
			} else {
				due = time.After(t.after)
			}
		case <-due:
			if due = nil; ctx.Err() != nil {
				return
			}
			if err := t.set(ctx, problem != ""); err != nil && ctx.Err() == nil {
				t.log.Warn("cannot change the node's taint, trying again", "node", t.node, "taint", taintKey, "wanted", problem != "", "error", err)
				due = time.After(2 * time.Second)
			}
		}
	}
}

// set changes nothing but our taint; somebody else's change in between makes it start over.
func (t *nodeTaint) set(ctx context.Context, tainted bool) error {
	return retry.RetryOnConflict(retry.DefaultBackoff, func() error {
		n, err := t.api.Nodes().Get(ctx, t.node, metav1.GetOptions{})
		if err != nil {
			return err
		}
		taints := slices.DeleteFunc(slices.Clone(n.Spec.Taints), func(o corev1.Taint) bool { return o.Key == taintKey })
		had := len(taints) < len(n.Spec.Taints)
		if had == tainted {
			return nil
		}
		if tainted {
			taints = append(taints, corev1.Taint{Key: taintKey, Effect: corev1.TaintEffectNoSchedule})
		}
		patch, err := json.Marshal(map[string]any{
			"metadata": map[string]any{"resourceVersion": n.ResourceVersion},
			"spec":     map[string]any{"taints": taints},
		})
		if err != nil {
			return err
		}
		if _, err := t.api.Nodes().Patch(ctx, t.node, types.MergePatchType, patch, metav1.PatchOptions{FieldManager: "weft-node"}); err != nil {
			return fmt.Errorf("patch node %s: %w", t.node, err)
		}
		t.log.Info("the node's taint changed", "node", t.node, "taint", taintKey, "set", tainted)
		return nil
	})
}
