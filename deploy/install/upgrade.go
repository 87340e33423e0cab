package install

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/Masterminds/semver/v3"

	"github.com/weft-mesh/weft/deploy/release"
)

// Upgrade is a plan, and how it relates to what is installed.
type Upgrade struct {
	*Plan
	From     string // version that is installed; empty when this revision is not
	To       string
	Beside   []string // other revisions that stay
	Recorded bool     // the settings are those of the last installation
	Refusals []string // why it should not be done
}

// PlanUpgrade makes the plan of an upgrade. Without files the settings are those that were recorded when the mesh was installed,
// with the input's --set laid over; a revision that is not installed yet is made beside the others.
func (c *Cluster) PlanUpgrade(ctx context.Context, in Input) (*Upgrade, error) {
	u := &Upgrade{To: release.Version()}
	namespace := in.Namespace
	if namespace == "" {
		namespace = DefaultNamespace
	}
	first, err := Resolve(in)
	if err != nil {
		return nil, err
	}
	namespace = first.Namespace
	chosen := slices.ContainsFunc(in.Sets, func(s string) bool { return strings.HasPrefix(strings.TrimPrefix(s, "spec."), "profile=") })
	if len(in.Files) == 0 && !chosen { // a profile that is chosen anew would be hidden below what was recorded
		from := first.Revision
		state, err := c.recorded(ctx, namespace, from)
		if err == nil && state == nil && from != "" {
			state, err = c.recorded(ctx, namespace, "") // a new revision begins as the default one is
		}
		if err != nil {
			return nil, fmt.Errorf("read what was installed: %w", c.unreachable(err))
		}
		if state != nil {
			u.Recorded = true
			in.base = state.Object
		}
	}
	wanted, err := Resolve(in)
	if err != nil {
		return nil, err
	}
	if u.Plan, err = NewPlan(wanted); err != nil {
		return nil, err
	}
	planes, err := c.Revisions(ctx, namespace)
	if err != nil {
		return nil, err
	}
	for _, p := range planes {
		if p.Revision == u.Revisioned() {
			u.From = p.Version
		} else {
			u.Beside = append(u.Beside, p.Revision+" ("+p.Version+")")
		}
		if r := skew(p.Version, u.To); r != "" {
			u.Refusals = append(u.Refusals, "revision "+p.Revision+": "+r)
		}
	}
	if len(planes) == 0 {
		return nil, fmt.Errorf("nothing is installed in namespace %s: weft install does that", namespace)
	}
	return u, nil
}

// skew says why one version should not follow, or stand beside, another. Proxies take their configuration from the next minor
// version, and kinds do not lose fields; further apart nobody has tried.
func skew(from, to string) string {
	a, errA := semver.NewVersion(from)
	b, errB := semver.NewVersion(to)
	if errA != nil || errB != nil {
		return "" // "dev" cannot be compared
	}
	switch {
	case b.LessThan(a):
		return fmt.Sprintf("%s is installed and this is weft %s: that is a downgrade. Take the newer weft, or say --force after reading its release notes", from, to)
	case a.Major() == b.Major() && b.Minor() > a.Minor()+1, a.Major() != b.Major():
		return fmt.Sprintf("%s is installed and this is weft %s: upgrade by way of the versions between, one minor version at a time, or say --force", from, to)
	}
	return ""
}

// BesideSteps say how namespaces come to a new revision, one by one.
func (u *Upgrade) BesideSteps() []string {
	if u.Revision == "" || u.From != "" {
		return nil
	}
	return []string{
		"",
		"Revision " + u.Revision + " is installed beside " + strings.Join(u.Beside, ", ") + ". Move namespaces one by one, and back the same way:",
		"  kubectl label namespace NAME --overwrite istio-injection- istio.io/rev=" + u.Revision,
		"  kubectl rollout restart deployment -n NAME",
		"When all have moved: weft uninstall --revision OLD. A tag moves many namespaces at once: weft tag set prod --revision " + u.Revision + " --overwrite",
	}
}
