package install

import (
	"context"
	"fmt"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// scaleUp brings Deployments to the least number that their autoscaler allows. It would do so itself, but looks only every 15 s;
// and the chart cannot say the number, since an upgrade would then undo what the autoscaler does.
func (c *Cluster) scaleUp(ctx context.Context, manifest, namespace string) error {
	objects, err := objectsOf(manifest, namespace)
	if err != nil {
		return err
	}
	for _, o := range objects {
		if o.Kind != "HorizontalPodAutoscaler" {
			continue
		}
		name, least := autoscaled(o.tree)
		if name == "" {
			continue
		}
		api := c.AppsV1().Deployments(o.Namespace)
		scale, err := api.GetScale(ctx, name, metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			continue
		}
		if err != nil {
			return fmt.Errorf("read the scale of Deployment %s/%s: %w", o.Namespace, name, err)
		}
		if scale.Spec.Replicas >= least {
			continue
		}
		// A patch: an update would conflict with whatever the Deployment's controller has just noted in it.
		patch := fmt.Appendf(nil, `{"spec":{"replicas":%d}}`, least)
		if _, err := api.Patch(ctx, name, types.MergePatchType, patch, metav1.PatchOptions{FieldManager: "weft"}, "scale"); err != nil {
			return fmt.Errorf("scale Deployment %s/%s to %d: %w", o.Namespace, name, least, err)
		}
	}
	return nil
}

// autoscaled is the Deployment of an autoscaler, and its least number of pods.
func autoscaled(hpa Tree) (name string, least int32) {
	if kind, _ := get(hpa, "spec", "scaleTargetRef", "kind"); kind != "Deployment" {
		return "", 0
	}
	v, _ := get(hpa, "spec", "scaleTargetRef", "name")
	name, _ = v.(string)
	n, _ := get(hpa, "spec", "minReplicas")
	i, _ := n.(int64)
	return name, int32(i)
}
