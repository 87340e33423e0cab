package install

import (
	"context"
	"fmt"
	"maps"
	"slices"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// countOf counts the objects of a kind that a CRD defines.
func (c *Cluster) countOf(ctx context.Context, crd Tree) (kind string, n int, err error) {
	text := func(path ...string) string {
		v, _ := get(crd, path...)
		s, _ := v.(string)
		return s
	}
	kind = text("spec", "names", "kind")
	resource := schema.GroupVersionResource{Group: text("spec", "group"), Resource: text("spec", "names", "plural")}
	versions, _ := get(crd, "spec", "versions")
	list, _ := versions.([]any)
	for _, v := range list {
		if asTree(v)["served"] == true {
			resource.Version, _ = asTree(v)["name"].(string)
		}
	}
	options := metav1.ListOptions{Limit: 500}
	for {
		got, err := c.Dynamic.Resource(resource).List(ctx, options)
		if ignoreMissing(err) != nil {
			return kind, n, fmt.Errorf("count objects of kind %s: %w", kind, err)
		}
		if err != nil {
			return kind, n, nil // the kind is just going
		}
		n += len(got.Items)
		if options.Continue = got.GetContinue(); options.Continue == "" {
			return kind, n, nil
		}
	}
}

func sortedNames(set map[string]bool) []string { return slices.Sorted(maps.Keys(set)) }
