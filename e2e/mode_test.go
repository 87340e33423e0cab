package e2e

import (
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"strings"
	"testing"

	"github.com/weft-mesh/weft/mesh"
)

// meshDiscovery is how sidecars learn the mesh unless a namespace says otherwise: WEFT_E2E_DISCOVERY=eager|on-demand, with which a sandbox is brought
// up, and which says what a cluster was installed with.
func meshDiscovery(t testing.TB) mesh.Discovery {
	t.Helper()
	text := os.Getenv("WEFT_E2E_DISCOVERY")
	if text == "" {
		return mesh.DefaultDiscovery
	}
	d, err := mesh.ParseDiscovery(text)
	if err != nil {
		t.Fatalf("WEFT_E2E_DISCOVERY: %v", err)
	}
	return d
}

// discoveryOf is how sidecars in the namespaces of a test learn the mesh.
func discoveryOf(t testing.TB) mesh.Discovery {
	t.Helper()
	d := meshDiscovery(t)
	if !strings.HasPrefix(t.Name(), "TestTheOtherWay/") {
		return d
	}
	return theOther(d)
}

func theOther(d mesh.Discovery) mesh.Discovery {
	if d == mesh.Eager {
		return mesh.OnDemand
	}
	return mesh.Eager
}

func withDiscovery(d mesh.Discovery) string { return mesh.DiscoveryAnnotation + "=" + string(d) }

// bothWays are the scenarios in which the two ways to learn the mesh could differ.
var bothWays = []func(*testing.T){
	TestS06WithoutRulesBothVersionsAnswer,
	TestS07WeightedSubsets,
	TestS10HeaderChoosesVersion,
	TestS12PrefixIsRewritten,
	TestS14RedirectInsideTheMesh,
	TestS16AbortsAShareOfRequests,
	TestS21RetriesHideFailures,
	TestS26MirroredRequestsReachTheCanary,
	TestS27ConsistentHashKeepsAUserOnOnePod,
	TestS30OutlierDetectionEjectsAFailingPod,
	TestS43MeshTLSCarriesTheIdentity,
	TestS66RelabelledPodLeavesTheEndpoints,
	TestS70EveryProtocolPassesTheMesh,
	TestStatefulSetPodsFindEachOther,
	TestInitContainersHaveTheMesh,
	TestExternalServices,
	TestFirstRequestToANewHost,
	TestHostThatIsMadeAfterItWasAskedFor,
}

// TestTheOtherWay runs the scenarios in namespaces whose sidecars learn the mesh in the way that is not the mesh's.
func TestTheOtherWay(t *testing.T) {
	onSandbox(t, "make e2e has a cluster for each")
	t.Parallel()
	for _, scenario := range bothWays {
		name := filepath.Ext(runtime.FuncForPC(reflect.ValueOf(scenario).Pointer()).Name())
		t.Run(strings.TrimPrefix(name, ".Test"), scenario)
	}
}
