package install

import (
	"context"
	_ "embed"
	"encoding/json"
	"fmt"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/yaml"
)

// What was asked for is kept where Istio kept it and where people look: kubectl get istiooperator installed-state -n istio-system.
// It is a record and nothing reads it to act on it; the truth is in the Helm releases. The kind comes with the first record, since
// Istio's API does not have it any more.

//go:embed istiooperator-crd.yaml
var operatorCRD []byte

var operatorResource = schema.GroupVersionResource{Group: "install.istio.io", Version: "v1alpha1", Resource: "istiooperators"}

// stateName is the record of a revision.
func stateName(revision string) string { return "installed-state" + suffix(revision) }

// record writes what was asked for.
func (c *Cluster) record(ctx context.Context, p *Plan) error {
	crd, err := yaml.YAMLToJSON(operatorCRD)
	if err != nil {
		return err
	}
	yes := true
	opts := metav1.PatchOptions{FieldManager: "weft", Force: &yes}
	if _, err := c.Dynamic.Resource(crdResource).Patch(ctx, "istiooperators.install.istio.io", types.ApplyPatchType, crd, opts); err != nil {
		return fmt.Errorf("record the installation: %w", err)
	}
	state := Tree{
		"apiVersion": GroupVersion, "kind": Kind,
		"metadata": Tree{
			"name": stateName(p.Revision), "namespace": p.Namespace,
			// Istio's operator, should one be left in the cluster, must not take it for an order.
			"annotations": Tree{"install.istio.io/ignoreReconcile": "true"},
			"labels":      Tree{"app.kubernetes.io/managed-by": "weft"},
		},
		"spec": p.Tree["spec"],
	}
	text, err := json.Marshal(state)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	for {
		_, err = c.Dynamic.Resource(operatorResource).Namespace(p.Namespace).Patch(ctx, stateName(p.Revision), types.ApplyPatchType, text, opts)
		if err == nil || !apierrors.IsNotFound(err) { // the kind is served a moment after it was made
			break
		}
		if pause(ctx, lookEvery) != nil {
			break
		}
	}
	if err != nil {
		return fmt.Errorf("record the installation: %w", err)
	}
	return nil
}

// recorded reads what was asked for; nil when there is no record.
func (c *Cluster) recorded(ctx context.Context, namespace, revision string) (*unstructured.Unstructured, error) {
	u, err := c.Dynamic.Resource(operatorResource).Namespace(namespace).Get(ctx, stateName(revision), metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil, nil
	}
	return u, err
}
