# The programs in an image without a shell; they run as an unprivileged user and
# write nothing. `writer dev` starts servers and is not for containers.
FROM golang:1.26 AS build
WORKDIR /src
COPY go.mod go.sum ./
RUN go mod download
COPY . .
ARG VERSION=unknown
RUN CGO_ENABLED=0 go build -trimpath -o /out/ -ldflags "-X github.com/refoldhq/refold/pkg/service.version=$VERSION" ./writer ./projector ./rebuild

FROM scratch
LABEL org.opencontainers.image.title="refold" org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.description="Event-sourced write service and projection engine"
USER 65532:65532
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/
COPY --from=build /out/ /usr/local/bin/
ENTRYPOINT ["/usr/local/bin/writer"]
CMD ["serve", "--addr=:8080", "--admin-addr=:9080"]
