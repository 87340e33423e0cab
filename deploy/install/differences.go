package install

import (
	"fmt"
	"reflect"
	"strings"

	"k8s.io/apimachinery/pkg/api/resource"
)

// moving are fields that others rightly change: the autoscaler, the control plane, kubectl rollout restart.
var moving = []string{
	".status", ".spec.replicas", ".metadata.creationTimestamp", ".metadata.managedFields",
	".spec.template.metadata.annotations", // rollout restart; what we wrote is compared, what is more is not looked at
}

// differences lists where a live object lacks or contradicts what a manifest says. What the live object has more is the API
// server's defaults or somebody's addition, and no difference.
func differences(want, live any, path string) []string {
	for _, m := range moving {
		if path == m {
			return nil
		}
	}
	switch w := want.(type) {
	case Tree:
		l, ok := live.(Tree)
		if !ok && len(w) == 0 {
			return nil
		}
		if !ok {
			return []string{fmt.Sprintf("%s is gone", strings.TrimPrefix(path, "."))}
		}
		var out []string
		for _, k := range sortedKeys(w) {
			if w[k] == nil {
				continue
			}
			out = append(out, differences(w[k], l[k], path+"."+k)...)
		}
		return out
	case []any:
		l, _ := live.([]any)
		if len(w) == 0 && len(l) == 0 {
			return nil
		}
		if len(w) != len(l) {
			return []string{fmt.Sprintf("%s has %d items instead of %d", strings.TrimPrefix(path, "."), len(l), len(w))}
		}
		var out []string
		for i := range w {
			out = append(out, differences(w[i], l[i], fmt.Sprintf("%s[%d]", path, i))...)
		}
		return out
	}
	if sameScalar(want, live) || closes(path, want, live) {
		return nil
	}
	return []string{fmt.Sprintf("%s is %s instead of %s", strings.TrimPrefix(path, "."), brief(live), brief(want))}
}

// closes: the control plane turns a webhook from Ignore to Fail once it serves.
func closes(path string, want, live any) bool {
	return strings.HasPrefix(path, ".webhooks[") && strings.HasSuffix(path, ".failurePolicy") && want == "Ignore" && live == "Fail"
}

// sameScalar: the API server writes quantities and numbers in its own way, and leaves empty values out.
func sameScalar(want, live any) bool {
	if reflect.DeepEqual(want, live) || live == nil && (want == "" || want == false || want == int64(0)) {
		return true
	}
	a, b := fmt.Sprint(want), fmt.Sprint(live)
	if a == b {
		return true
	}
	qa, errA := resource.ParseQuantity(a)
	qb, errB := resource.ParseQuantity(b)
	return errA == nil && errB == nil && qa.Cmp(qb) == 0
}

func brief(v any) string {
	if v == nil {
		return "missing"
	}
	text := fmt.Sprintf("%v", v)
	if len(text) > 60 {
		text = text[:57] + "..."
	}
	return fmt.Sprintf("%q", text)
}
