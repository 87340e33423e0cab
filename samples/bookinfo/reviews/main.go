// reviews answers the reviews of a book. v1 shows no ratings, v2 shows them as black stars and
// v3 as red ones: SERVICE_VERSION, ENABLE_RATINGS and STAR_COLOR say which it is.
package main

import (
	"net/http"
	"os"

	"github.com/weft-mesh/weft/samples/bookinfo/httpd"
)

type rating struct {
	Stars int    `json:"stars,omitempty"`
	Color string `json:"color,omitempty"`
	Error string `json:"error,omitempty"`
}

type review struct {
	Reviewer string  `json:"reviewer"`
	Text     string  `json:"text"`
	Rating   *rating `json:"rating,omitempty"`
}

func main() {
	version := httpd.Env("SERVICE_VERSION", "v1")
	withRatings := httpd.Env("ENABLE_RATINGS", "false") == "true"
	color := httpd.Env("STAR_COLOR", "black")
	ratings := "http://" + httpd.Env("RATINGS_HOSTNAME", "ratings") + ":" + httpd.Env("RATINGS_SERVICE_PORT", "9080")
	pod, _ := os.Hostname() // empty in the answer when there is none

	mux := http.NewServeMux()
	mux.HandleFunc("GET /reviews/{id}", func(w http.ResponseWriter, r *http.Request) {
		reviews := []review{
			{Reviewer: "Reviewer1", Text: "An extremely entertaining play by Shakespeare. The slapstick humour is refreshing!"},
			{Reviewer: "Reviewer2", Text: "Absolutely fun and entertaining. The play lacks thematic depth when compared to other plays by Shakespeare."},
		}
		if withRatings {
			var got struct {
				Ratings map[string]int `json:"ratings"`
			}
			_, err := httpd.GetJSON(r, ratings+"/ratings/"+r.PathValue("id"), &got)
			for i := range reviews {
				if err != nil {
					reviews[i].Rating = &rating{Error: "Ratings service is currently unavailable"}
					continue
				}
				reviews[i].Rating = &rating{Stars: got.Ratings[reviews[i].Reviewer], Color: color}
			}
		}
		httpd.WriteJSON(w, http.StatusOK, map[string]any{
			"id": r.PathValue("id"), "podname": pod, "version": version, "reviews": reviews,
		})
	})
	httpd.Serve("reviews", mux)
}
