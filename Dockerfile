# The three programs in an image without a shell; they run as an unprivileged user
# and write nothing. `writer dev` starts servers and is not for containers.
#
#   docker build --build-arg VERSION=$(git describe --tags --always) --build-arg REVISION=$(git rev-parse HEAD) -t refold/refold:0.1.0 .
#
# The build asks the Go module proxy and nobody else. An image with contracts of
# your own:  FROM refold/refold:0.1.0 / COPY contracts /contracts / ENV REFOLD_SCHEMAS=/contracts
FROM golang:1.26 AS build
WORKDIR /src
COPY go.mod go.sum ./
RUN go mod download
COPY . .
ARG VERSION=unknown
RUN CGO_ENABLED=0 go build -trimpath -ldflags "-s -w -X github.com/refoldhq/refold/pkg/service.version=$VERSION" \
    -o /out/ ./writer ./projector ./rebuild
# What is in each program, as CycloneDX: /usr/share/sbom/<program>.cdx.json.
ARG SBOM=v1.10.0
RUN mkdir -p /sbom && for program in writer projector rebuild; do \
    go run github.com/CycloneDX/cyclonedx-gomod/cmd/cyclonedx-gomod@$SBOM bin -json -noserial -version "$VERSION" \
    -output /sbom/$program.cdx.json /out/$program || exit 1; done

FROM scratch
ARG VERSION=unknown
ARG REVISION=unknown
LABEL org.opencontainers.image.title="refold" \
      org.opencontainers.image.description="Event-sourced write service and projection engine" \
      org.opencontainers.image.version="$VERSION" \
      org.opencontainers.image.revision="$REVISION" \
      org.opencontainers.image.source="https://github.com/refoldhq/refold" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/
COPY --from=build /sbom/ /usr/share/sbom/
COPY --from=build /out/ /usr/local/bin/
ENV PATH=/usr/local/bin
USER 65532:65532
ENTRYPOINT ["/usr/local/bin/writer"]
CMD ["serve", "--addr=:8080", "--admin-addr=:9080"]
