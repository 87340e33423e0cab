package install

import (
	"cmp"
	"context"
	"slices"
)

// RemoteVersion is one version that runs in a cluster.
type RemoteVersion struct {
	Component string `json:"component"` // "weftd", or "proxy"
	Revision  string `json:"revision,omitempty"`
	Version   string `json:"version"`
	Pods      int    `json:"pods,omitempty"`
}

// RemoteVersions are those of the control planes, and of the proxies with their numbers.
func (c *Cluster) RemoteVersions(ctx context.Context) ([]RemoteVersion, error) {
	planes, err := c.Revisions(ctx, "")
	if err != nil {
		return nil, err
	}
	var out []RemoteVersion
	for _, p := range planes {
		name := "weftd"
		if p.Foreign {
			name = "istiod"
		}
		out = append(out, RemoteVersion{Component: name, Revision: p.Revision, Version: p.Version})
	}
	pods, err := c.meshPods(ctx)
	if err != nil {
		return nil, err
	}
	proxies := map[string]int{}
	for _, p := range pods {
		proxies[tagOf(p.image)]++
	}
	var all []RemoteVersion
	for v, n := range proxies {
		all = append(all, RemoteVersion{Component: "proxy", Version: v, Pods: n})
	}
	slices.SortFunc(all, func(a, b RemoteVersion) int {
		return cmp.Or(cmp.Compare(b.Pods, a.Pods), cmp.Compare(a.Version, b.Version))
	})
	return append(out, all...), nil
}
