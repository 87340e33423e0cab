package mesh

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"

	networking "istio.io/api/networking/v1alpha3"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// next takes an update that must be there by now (in the time of the test's bubble).
func next(t *testing.T, updates <-chan Update) Update {
	t.Helper()
	synctest.Wait()
	select {
	case u := <-updates:
		return u
	default:
		t.Fatal("no update")
		return Update{}
	}
}

func none(t *testing.T, updates <-chan Update, why string) {
	t.Helper()
	synctest.Wait()
	select {
	case u := <-updates:
		t.Fatalf("an update came: %s (%v)", why, u.Changes)
	default:
	}
}

func vs(host string) Object {
	return Object{Object: virtualService("a", "v", 1, &networking.VirtualService{Hosts: []string{host}})}
}

func TestTheFirstUpdateIsTheMeshOfThisMoment(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := NewStore(Options{})
		s.Apply(reviews()...)
		u := next(t, s.Updates(t.Context()))
		if u.Snapshot.Workload("default", "reviews-1") == nil || u.Changes.Len() != 0 {
			t.Errorf("got %v", u)
		}
	})
}

func TestConfigurationWaitsUntilItIsQuiet(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := NewStore(Options{})
		updates := s.Updates(t.Context())
		next(t, updates)
		s.Apply(vs("a.com"))
		time.Sleep(60 * time.Millisecond)
		s.Apply(vs("b.com"))
		time.Sleep(60 * time.Millisecond)
		none(t, updates, "only 60 ms have been quiet")
		time.Sleep(40 * time.Millisecond)
		u := next(t, updates)
		if !u.Changes.Has(Key{"VirtualService", "a", "v"}) || u.Snapshot.VirtualServicesFor("a", "mesh", "b.com") == nil {
			t.Errorf("got %v", u)
		}
		time.Sleep(time.Minute)
		none(t, updates, "nothing changed")
		s.Apply(vs("b.com"))
		time.Sleep(time.Minute)
		none(t, updates, "the same object was applied again")
	})
}

func TestConfigurationIsNotHeldBackForEver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := NewStore(Options{DebounceMax: time.Second})
		updates := s.Updates(t.Context())
		next(t, updates)
		start := time.Now()
		for i := 0; ; i++ {
			s.Apply(vs(string(rune('a'+i%26)) + ".com"))
			time.Sleep(50 * time.Millisecond)
			synctest.Wait()
			select {
			case <-updates:
				if waited := time.Since(start); waited < time.Second || waited > 1100*time.Millisecond {
					t.Errorf("it came after %v", waited)
				}
				return
			default:
			}
			if time.Since(start) > 5*time.Second {
				t.Fatal("it never came")
			}
		}
	})
}

func TestEndpointsGoAtOnceAndDoNotTakeConfigurationAlong(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := NewStore(Options{})
		s.Apply(reviews()...)
		updates := s.Updates(t.Context())
		next(t, updates)
		s.Apply(vs("a.com"))
		s.Delete(Key{"Pod", "default", "reviews-1"})
		u := next(t, updates)
		if u.Snapshot.Workload("default", "reviews-1") != nil || !u.Changes.HasKind(KindEndpoints) {
			t.Errorf("the pod is still there: %v", u.Changes)
		}
		if u.Snapshot.VirtualServices("a", "mesh") != nil {
			t.Error("the VirtualService did not wait")
		}
		for range 9 { // endpoints that come and go must not keep configuration waiting
			time.Sleep(10 * time.Millisecond)
			s.Apply(Object{Object: &corev1.Pod{ObjectMeta: meta("default", "p"+time.Now().String())}})
			next(t, updates)
		}
		time.Sleep(10 * time.Millisecond)
		if u := next(t, updates); u.Snapshot.VirtualServices("a", "mesh") == nil {
			t.Errorf("after 100 ms: %v", u.Changes)
		}
	})
}

// Who takes the routes to a version of an app away and then its pods must not have the second seen first.
func TestEndpointsThatGoDoNotOvertakeConfiguration(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := NewStore(Options{DebounceAfter: time.Hour, DebounceMax: time.Hour})
		s.Apply(reviews()...)
		updates := s.Updates(t.Context())
		next(t, updates)
		s.Apply(vs("a.com"))
		synctest.Wait()
		fewer := reviews()[3]
		slice := fewer.Object.(*discoveryv1.EndpointSlice)
		slice.Endpoints[0].Conditions.Ready = ptr(false) // its pod ends
		s.Apply(fewer)
		u := next(t, updates)
		if svc := u.Snapshot.Service("default", "reviews.default.svc.cluster.local"); u.Snapshot.Endpoints(svc, svc.Ports[0])[1].Ready || !u.Changes.HasKind(KindEndpoints) {
			t.Errorf("the endpoint is still there: %v", u.Changes)
		}
		if u.Snapshot.VirtualServices("a", "mesh") == nil || !u.Changes.HasKind("VirtualService") {
			t.Errorf("the VirtualService, which was there before, comes later: %v", u.Changes)
		}
		none(t, updates, "all of it was told")
	})
}

func TestEndpointsWaitTooWhenAskedTo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := NewStore(Options{DebounceEndpoints: true})
		updates := s.Updates(t.Context())
		next(t, updates)
		s.Apply(reviews()...)
		none(t, updates, "nothing was quiet yet")
		time.Sleep(100 * time.Millisecond)
		if u := next(t, updates); u.Snapshot.Workload("default", "reviews-1") == nil {
			t.Error("the pod is missing")
		}
	})
}

func TestASlowReaderSkipsSnapshotsAndMissesNoChange(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := NewStore(Options{})
		s.Apply(reviews()...)
		slow, fast := s.Updates(t.Context()), s.Updates(t.Context())
		next(t, slow)
		next(t, fast)
		for _, pod := range []string{"reviews-1", "reviews-2"} {
			s.Delete(Key{"Pod", "default", pod})
			next(t, fast)
		}
		u := next(t, slow)
		if !u.Changes.Has(Key{"Pod", "default", "reviews-1"}) || !u.Changes.Has(Key{"Pod", "default", "reviews-2"}) || u.Snapshot.Version() != s.Snapshot().Version() {
			t.Errorf("got version %d, %v", u.Snapshot.Version(), u.Changes)
		}
		none(t, slow, "it has everything")
	})
}

func TestIstiosVariablesSetTheDebounce(t *testing.T) {
	env := map[string]string{"PILOT_DEBOUNCE_AFTER": "2500ms", "PILOT_DEBOUNCE_MAX": "0s", "PILOT_ENABLE_EDS_DEBOUNCE": "true"}
	var o Options
	if err := o.FromEnvironment(func(k string) string { return env[k] }); err != nil || o.DebounceAfter != 2500*time.Millisecond || o.DebounceMax != 1 || !o.DebounceEndpoints {
		t.Errorf("got %+v, %v", o, err)
	}
	env["PILOT_DEBOUNCE_AFTER"], env["PILOT_ENABLE_EDS_DEBOUNCE"] = "soon", "maybe"
	err := o.FromEnvironment(func(k string) string { return env[k] })
	if err == nil || !strings.Contains(err.Error(), `PILOT_DEBOUNCE_AFTER="soon"`) || !strings.Contains(err.Error(), `"maybe"`) {
		t.Errorf("error %v does not name both", err)
	}
}

func TestAskingForANamespaceDoesNotCutTheDebounceShort(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := NewStore(Options{})
		updates := s.Updates(t.Context())
		next(t, updates)
		s.Apply(objects(&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "a", Labels: map[string]string{"istio-injection": "enabled"}}})...)
		if ns := s.Namespace("a"); ns == nil || ns.Labels["istio-injection"] != "enabled" {
			t.Errorf("the store does not know what was applied: %v", ns)
		}
		if s.Current().Namespace("a") != nil {
			t.Error("the snapshot shows it already")
		}
		none(t, updates, "nothing was quiet yet")
	})
}
