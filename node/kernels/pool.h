/* Threads that wait for a range of work to share; one call uses them at a time, a second one at once works alone. */

#define THREADS_MAX 64

static struct {
    pthread_mutex_t caller, lock;
    pthread_cond_t begun, ended;
    int threads; /* waiting or working, beside the caller */
    int sharing, left;
    long round, count, grain;
    Work *work;
    const void *what;
} pool = {.caller = PTHREAD_MUTEX_INITIALIZER, .lock = PTHREAD_MUTEX_INITIALIZER,
          .begun = PTHREAD_COND_INITIALIZER, .ended = PTHREAD_COND_INITIALIZER};

/* The part of thread `index`: as equal as whole grains allow. */
static void work_part(Work *work, const void *what, long count, long grain, long index, long sharing) {
    long grains = (count + grain - 1) / grain;
    long begin = grains * index / sharing * grain, end = grains * (index + 1) / sharing * grain;
    if (end > count) end = count;
    if (begin < end) work(what, begin, end);
}

static void *serve(void *argument) {
    long index = (long)(intptr_t)argument, seen = 0;
    pthread_mutex_lock(&pool.lock);
    for (;;) {
        while (pool.round == seen || index >= pool.sharing) {
            seen = pool.round;
            pthread_cond_wait(&pool.begun, &pool.lock);
        }
        seen = pool.round;
        Work *work = pool.work;
        const void *what = pool.what;
        long count = pool.count, grain = pool.grain, sharing = pool.sharing;
        pthread_mutex_unlock(&pool.lock);
        work_part(work, what, count, grain, index, sharing);
        pthread_mutex_lock(&pool.lock);
        if (--pool.left == 0) pthread_cond_signal(&pool.ended);
    }
    return NULL;
}

/* With the lock held: threads until there are `wanted`, or the system gives no more. */
static void grow(int wanted) {
    while (pool.threads < wanted) {
        pthread_t thread;
        if (pthread_create(&thread, NULL, serve, (void *)(intptr_t)(pool.threads + 1))) return;
        pthread_detach(thread);
        pool.threads++;
    }
}

/* A child of fork has the memory and not the threads. */
static void forget(void) {
    pthread_mutex_init(&pool.caller, NULL);
    pthread_mutex_init(&pool.lock, NULL);
    pthread_cond_init(&pool.begun, NULL);
    pthread_cond_init(&pool.ended, NULL);
    pool.threads = 0;
    pool.round = 0;
    pool.sharing = 0;
}

__attribute__((constructor)) static void remember(void) { pthread_atfork(NULL, NULL, forget); }

static void in_parallel(Work *work, const void *what, long count, long grain, int threads) {
    if (threads > THREADS_MAX) threads = THREADS_MAX;
    if (threads <= 1 || count <= grain || pthread_mutex_trylock(&pool.caller)) {
        work(what, 0, count);
        return;
    }
    pthread_mutex_lock(&pool.lock);
    grow(threads - 1);
    pool.work = work, pool.what = what, pool.count = count, pool.grain = grain;
    pool.sharing = pool.threads + 1 < threads ? pool.threads + 1 : threads;
    pool.left = pool.sharing - 1;
    long sharing = pool.sharing;
    pool.round++;
    pthread_cond_broadcast(&pool.begun);
    pthread_mutex_unlock(&pool.lock);
    work_part(work, what, count, grain, 0, sharing);
    pthread_mutex_lock(&pool.lock);
    while (pool.left) pthread_cond_wait(&pool.ended, &pool.lock);
    pthread_mutex_unlock(&pool.lock);
    pthread_mutex_unlock(&pool.caller);
}
