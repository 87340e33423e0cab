package show

import (
	"bytes"
	"fmt"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/util/jsonpath"

	"github.com/weft-mesh/weft/sandbox/store"
)

// ParseCondition reads kubectl wait's --for: "condition=NAME[=VALUE]",
// "jsonpath={...}[=VALUE]", "delete" (for which the function is never true: an object that exists is not deleted).
func ParseCondition(s string) (func(store.Object) (bool, error), error) {
	kind, rest, _ := strings.Cut(s, "=")
	switch {
	case s == "delete":
		return func(store.Object) (bool, error) { return false, nil }, nil
	case kind == "condition" && rest != "":
		name, want, ok := strings.Cut(rest, "=")
		if !ok {
			want = "True"
		}
		return func(o store.Object) (bool, error) { return hasCondition(o, name, want) }, nil
	case kind == "jsonpath" && rest != "":
		expr, want, hasWant := rest, "", false
		if i := strings.LastIndex(rest, "}="); i >= 0 {
			expr, want, hasWant = rest[:i+1], rest[i+2:], true
		}
		p := jsonpath.New("for").AllowMissingKeys(true)
		if err := p.Parse(expr); err != nil {
			return nil, fmt.Errorf("--for=%s: %w", s, err)
		}
		return func(o store.Object) (bool, error) {
			m, err := plain(o)
			if err != nil {
				return false, err
			}
			var b bytes.Buffer
			if err := p.Execute(&b, m); err != nil {
				return false, err
			}
			if hasWant {
				return b.String() == want, nil
			}
			return b.Len() > 0, nil
		}, nil
	}
	return nil, fmt.Errorf("--for=%s: use condition=NAME[=VALUE], delete or jsonpath={...}[=VALUE]", s)
}

func hasCondition(o store.Object, name, want string) (bool, error) {
	m, err := runtime.DefaultUnstructuredConverter.ToUnstructured(o)
	if err != nil {
		return false, err
	}
	status, _ := m["status"].(map[string]any)
	list, _ := status["conditions"].([]any)
	for _, c := range list {
		cm, _ := c.(map[string]any)
		if t, _ := cm["type"].(string); strings.EqualFold(t, name) {
			v, _ := cm["status"].(string)
			return strings.EqualFold(v, want), nil
		}
	}
	return false, nil
}

// Rollout says how far the update of a workload is, in kubectl rollout status' words.
func Rollout(o store.Object) (text string, done bool, err error) {
	switch t := o.(type) {
	case *appsv1.Deployment:
		want := deref(t.Spec.Replicas)
		st := t.Status
		for _, c := range st.Conditions {
			if c.Type == appsv1.DeploymentReplicaFailure && c.Status == "True" {
				return fmt.Sprintf("Waiting for deployment %q rollout to finish: %s", t.Name, c.Message), false, nil
			}
		}
		switch {
		case st.ObservedGeneration < t.Generation:
			return "Waiting for deployment spec update to be observed...", false, nil
		case st.UpdatedReplicas < want:
			return fmt.Sprintf("Waiting for deployment %q rollout to finish: %d out of %d new replicas have been updated...", t.Name, st.UpdatedReplicas, want), false, nil
		case st.Replicas > st.UpdatedReplicas:
			return fmt.Sprintf("Waiting for deployment %q rollout to finish: %d old replicas are pending termination...", t.Name, st.Replicas-st.UpdatedReplicas), false, nil
		case st.AvailableReplicas < st.UpdatedReplicas:
			return fmt.Sprintf("Waiting for deployment %q rollout to finish: %d of %d updated replicas are available...", t.Name, st.AvailableReplicas, st.UpdatedReplicas), false, nil
		}
		return fmt.Sprintf("deployment %q successfully rolled out", t.Name), true, nil
	case *appsv1.StatefulSet:
		want := deref(t.Spec.Replicas)
		st := t.Status
		switch {
		case st.ObservedGeneration < t.Generation:
			return "Waiting for statefulset spec update to be observed...", false, nil
		case st.ReadyReplicas < want || st.Replicas != want:
			return fmt.Sprintf("Waiting for %d pods to be ready...", want-st.ReadyReplicas), false, nil
		case st.UpdatedReplicas < want:
			return fmt.Sprintf("waiting for statefulset rolling update to complete %d pods at revision %s...", st.UpdatedReplicas, st.UpdateRevision), false, nil
		}
		return fmt.Sprintf("statefulset rolling update complete %d pods at revision %s...", st.UpdatedReplicas, st.UpdateRevision), true, nil
	case *appsv1.DaemonSet:
		st := t.Status
		switch {
		case st.ObservedGeneration < t.Generation:
			return "Waiting for daemon set spec update to be observed...", false, nil
		case st.UpdatedNumberScheduled < st.DesiredNumberScheduled || st.NumberAvailable < st.DesiredNumberScheduled:
			return fmt.Sprintf("Waiting for daemon set %q rollout to finish: %d of %d updated pods are available...", t.Name, st.NumberAvailable, st.DesiredNumberScheduled), false, nil
		}
		return fmt.Sprintf("daemon set %q successfully rolled out", t.Name), true, nil
	}
	return "", false, fmt.Errorf("%s has no rollout", o.GetName())
}
